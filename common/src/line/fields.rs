//! The members of a JSON object, read one by one with the place each came from; unknown and repeated ones refused.
//! Which keys there are is `mod.rs`.

use std::collections::BTreeMap;

use serde_json::Value;
use serde_json::value::RawValue;

use super::members::Members;
use super::{BATCH_KEYS, BadLine, EXTRA_KEYS, LATER_KEYS, MAX_TAGS, NAME_CHARS, PROMPT_KEYS};

/// An object's members in the text they came from.
pub(super) struct Fields<'a> {
    line: &'a str,
    members: Vec<(String, &'a RawValue)>,
}

impl<'a> Fields<'a> {
    pub(super) fn parse(line: &'a str) -> Result<Self, BadLine> {
        let members: Members<'a, MAX_KEYS> = serde_json::from_str(line).map_err(|error| {
            let what = error.to_string();
            let what = what.split(" at line ").next().unwrap_or_default();
            BadLine { column: (error.column() > 0).then(|| error.column()), what: what.to_owned(), hint: None }
        })?;
        Ok(Self { line, members: members.0 })
    }

    /// The members of an object that stands in this one; places are still counted in the whole line.
    pub(super) fn inside(&self, raw: &'a RawValue) -> Result<Self, BadLine> {
        Ok(Self { line: self.line, members: Self::parse(raw.get())?.members })
    }

    pub(super) fn has(&self, key: &str) -> bool {
        self.raw(key).is_some()
    }

    pub(super) fn raw(&self, key: &str) -> Option<&'a RawValue> {
        self.members.iter().find(|(name, _)| name == key).map(|(_, raw)| *raw)
    }

    pub(super) fn fault(&self, key: &str, what: &str) -> BadLine {
        let bad = BadLine::new(what);
        match self.raw(key) {
            Some(raw) => bad.at(self.line, raw.get()),
            None => bad,
        }
    }

    /// Refuses keys that are repeated or not among `known`.
    pub(super) fn only(&self, known: &[&str]) -> Result<(), BadLine> {
        for (n, (key, raw)) in self.members.iter().enumerate() {
            if self.members.iter().take(n).any(|(other, _)| other == key) {
                return Err(BadLine::new(format!("{:?} is there twice", short(key))).at(self.line, raw.get()));
            }
            if !known.contains(&key.as_str()) {
                return Err(unknown(key, known).at(self.line, raw.get()));
            }
        }
        Ok(())
    }

    /// A value, `null` counting as absent.
    pub(super) fn value(&self, key: &str) -> Result<Option<Value>, BadLine> {
        let Some(raw) = self.raw(key) else { return Ok(None) };
        match serde_json::from_str(raw.get()) {
            Ok(Value::Null) => Ok(None),
            Ok(value) => Ok(Some(value)),
            Err(_) => Err(self.fault(key, &format!("{key:?} cannot be read (nested too deep?)"))),
        }
    }

    pub(super) fn text(&self, key: &str) -> Result<Option<String>, BadLine> {
        match self.value(key)? {
            None => Ok(None),
            Some(Value::String(text)) => Ok(Some(text)),
            Some(Value::Number(number)) => {
                Err(self.fault(key, &format!("{key:?} is a text: write it in quotes, \"{number}\"")))
            }
            Some(_) => Err(self.fault(key, &format!("{key:?} is not a text"))),
        }
    }

    /// A text of 1 to [`NAME_CHARS`] characters, none of them a control character.
    pub(super) fn name(&self, key: &str) -> Result<Option<String>, BadLine> {
        let Some(text) = self.text(key)? else { return Ok(None) };
        check_name(key, &text).map(|()| Some(text)).map_err(|what| self.fault(key, &what))
    }

    /// `custom_id`, or its other name `id`; a number counts as its digits.
    pub(super) fn id(&self) -> Result<Option<String>, BadLine> {
        if self.has("id") && self.has("custom_id") {
            return Err(self.fault("id", "\"id\" and \"custom_id\" are the same thing; give one"));
        }
        let key = if self.has("id") { "id" } else { "custom_id" };
        match self.value(key)? {
            Some(Value::Number(number)) => Ok(Some(number.to_string())),
            _ => self.name(key),
        }
    }

    pub(super) fn tags(&self, key: &str) -> Result<BTreeMap<String, String>, BadLine> {
        let members = match self.value(key)? {
            None => return Ok(BTreeMap::new()),
            Some(Value::Object(members)) => members,
            Some(_) => return Err(self.fault(key, "tags are not an object")),
        };
        if members.len() > MAX_TAGS {
            return Err(self.fault(key, &format!("more than {MAX_TAGS} tags")));
        }
        let mut tags = BTreeMap::new();
        for (name, value) in members {
            let value = match value {
                Value::String(text) => text,
                Value::Number(_) | Value::Bool(_) => value.to_string(),
                Value::Null | Value::Array(_) | Value::Object(_) => {
                    return Err(self.fault(key, "a tag's value is not a text"));
                }
            };
            check_name("a tag", &name).and_then(|()| check_value(&value)).map_err(|what| self.fault(key, &what))?;
            tags.insert(name, value);
        }
        Ok(tags)
    }

    pub(super) fn number(&self, key: &str, least: u32, most: u32) -> Result<Option<u32>, BadLine> {
        let Some(value) = self.value(key)? else { return Ok(None) };
        let number = value.as_u64().and_then(|n| u32::try_from(n).ok()).filter(|n| (least..=most).contains(n));
        number.map(Some).ok_or_else(|| self.fault(key, &format!("{key:?} is not a whole number of {least} to {most}")))
    }
}

/// Whether `text` can be the name `what` stands for: 1 to [`NAME_CHARS`] characters without control characters.
pub fn check_name(what: &str, text: &str) -> Result<(), String> {
    if text.is_empty() {
        return Err(format!("{what:?} is empty"));
    }
    if text.chars().count() > NAME_CHARS || text.chars().any(char::is_control) {
        return Err(format!("{what:?} is over {NAME_CHARS} characters or holds a control character"));
    }
    Ok(())
}

fn check_value(text: &str) -> Result<(), String> {
    if text.chars().count() > NAME_CHARS {
        return Err(format!("a tag's value is over {NAME_CHARS} characters"));
    }
    Ok(())
}

fn unknown(key: &str, known: &[&str]) -> BadLine {
    if LATER_KEYS.contains(&key) {
        return BadLine::new(format!("{key:?} is not supported by this version"));
    }
    let bad = BadLine::new(format!("there is no key {:?}", short(key)));
    let elsewhere =
        [PROMPT_KEYS, BATCH_KEYS].iter().all(|keys| !std::ptr::eq(*keys, known)) && PROMPT_KEYS.contains(&key);
    if !std::ptr::eq(known, EXTRA_KEYS) && EXTRA_KEYS.contains(&key) {
        return bad.hint(format!("{key:?} stands under \"promptq\": {{\"promptq\":{{{key:?}:…}}}}"));
    }
    if elsewhere {
        return bad.hint(format!("{key:?} stands beside the prompt, not under \"promptq\""));
    }
    match closest(key, known.iter().copied()) {
        Some(near) => bad.hint(format!("did you mean {near:?}?")),
        None => bad.hint(format!("known keys are {}", known.join(", "))),
    }
}

/// The name among `known` that `word` most likely meant, if one is near enough.
pub fn closest<'a>(word: &str, known: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let near =
        known.into_iter().map(|name| (strsim::damerau_levenshtein(&word.to_lowercase(), &name.to_lowercase()), name));
    let (distance, name) = near.min_by_key(|(distance, _)| *distance)?;
    (distance <= 1 + word.chars().count() / 4).then_some(name)
}

fn short(key: &str) -> String {
    key.chars().take(40).collect()
}

/// The most keys of one object that are looked at; the reader then says that the object does not end there.
const MAX_KEYS: usize = 100;
