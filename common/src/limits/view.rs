//! A limit key's shared state as people see it. What it is, is `pool.rs`.

use serde::ser::SerializeStruct as _;
use serde::{Serialize, Serializer};

use super::amount::{Cap, Measure};
use crate::outcome::Usd;

/// What people see of a limit key.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct PoolView {
    /// Each cap, in the order of the configuration.
    pub caps: Vec<CapView>,
    /// For how many milliseconds nobody calls yet.
    pub frozen_for: i64,
    /// The share of its limits that is used after refusals; 1 for all of them.
    pub rate: f64,
    /// Workers that have it now.
    pub workers: usize,
    /// Those of them that wait for more of it.
    pub starving: usize,
}

/// One cap as people see it. Amounts are what the cap counts, of money billionths of a dollar ([`Measure::say`] writes
/// them); for programs money is a decimal string of dollars.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CapView {
    /// As it is in force now.
    pub cap: Cap,
    /// As configured.
    pub configured: i64,
    /// As a person set it for the fleet.
    pub set: Option<i64>,
    /// As the provider's headers have it.
    pub learned: Option<i64>,
    /// Consumed within its window.
    pub used: i64,
    /// Held by workers: granted, or reserved by calls in flight.
    pub held: i64,
}

/// Money as dollars, anything else as it is counted.
#[derive(Serialize)]
#[serde(untagged)]
enum Said {
    Count(i64),
    Money(Usd),
}

impl Serialize for CapView {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let is_money = self.cap.measure == Measure::Usd;
        let say = |amount| if is_money { Said::Money(Usd::from_nanos(amount)) } else { Said::Count(amount) };
        let mut fields = serializer.serialize_struct("CapView", 6)?;
        fields.serialize_field("cap", &self.cap.to_string())?;
        fields.serialize_field("configured", &say(self.configured))?;
        fields.serialize_field("set", &self.set.map(say))?;
        fields.serialize_field("learned", &self.learned.map(say))?;
        fields.serialize_field("used", &say(self.used))?;
        fields.serialize_field("held", &say(self.held))?;
        fields.end()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::limits::Per;

    #[test]
    fn money_is_said_in_dollars_and_everything_else_as_it_is() {
        let view = |measure, per| CapView {
            cap: Cap { measure, per, most: 25_000_000_000 },
            configured: 25_000_000_000,
            set: None,
            learned: None,
            used: 1_250_000_000,
            held: 0,
        };
        let money = serde_json::to_string(&view(Measure::Usd, Per::Ever)).unwrap();
        let said = r#"{"cap":"$25","configured":"25","set":null,"learned":null,"used":"1.25","held":"0"}"#;
        assert_eq!(money, said);
        let tokens = serde_json::to_value(view(Measure::Tokens, Per::Day)).unwrap();
        assert_eq!(
            (tokens["used"].as_i64(), tokens["cap"].as_str()),
            (Some(1_250_000_000), Some("25000000000 tokens/day"))
        );
    }
}
