//! The members of any JSON object as they stand in its text: in order, repeats included.

use std::fmt;

use serde::de::{Deserialize, Deserializer, MapAccess, Visitor};
use serde_json::value::RawValue;

/// At most `MOST` of them; the reader of a larger object then says that it does not end there.
#[derive(Debug)]
pub struct Members<'a, const MOST: usize>(pub Vec<(String, &'a RawValue)>);

impl<'de: 'a, 'a, const MOST: usize> Deserialize<'de> for Members<'a, MOST> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Seen<const MOST: usize>;
        impl<'de, const MOST: usize> Visitor<'de> for Seen<MOST> {
            type Value = Members<'de, MOST>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object such as {\"prompt\":\"…\"}")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
                let mut members = Vec::new();
                while members.len() < MOST
                    && let Some(member) = map.next_entry::<String, &'de RawValue>()?
                {
                    members.push(member);
                }
                Ok(Members(members))
            }
        }
        deserializer.deserialize_map(Seen::<MOST>)
    }
}
