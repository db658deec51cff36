//! Values that people read as text and our own bytes hold as a number, for serde.

use std::borrow::Cow;
use std::fmt::Display;
use std::str::FromStr;

use serde::de::Error;
use serde::{Deserialize, Deserializer, Serializer};

/// Writes a value whose number this is.
pub(crate) fn write<S: Serializer>(serializer: S, value: &impl Display, number: i64) -> Result<S::Ok, S::Error> {
    if serializer.is_human_readable() { serializer.collect_str(value) } else { serializer.serialize_i64(number) }
}

/// Reads what [`write()`] wrote; `of` makes the value of its number.
pub(crate) fn read<'de, D: Deserializer<'de>, T>(deserializer: D, of: fn(i64) -> T) -> Result<T, D::Error>
where
    T: FromStr<Err: Display>,
{
    if deserializer.is_human_readable() {
        Cow::<'de, str>::deserialize(deserializer)?.parse().map_err(Error::custom)
    } else {
        i64::deserialize(deserializer).map(of)
    }
}
