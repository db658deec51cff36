//! Text to filter, by hand: words, quotes, comparisons, parentheses; every error with its column.

use promptq_common::record::State;
use promptq_common::time::parse_duration;

use super::{Compare, Count, Field, Filter};
use crate::problem::{Problem, Result};

/// The deepest nesting of parentheses and `not`.
const DEEPEST: usize = 64;

/// Reads a filter.
///
/// # Errors
/// A usage problem with the column (in characters, 1-based) and the text around it.
pub fn parse(text: &str) -> Result<Filter> {
    let mut parser = Parser { text, tokens: tokens(text)?, at: 0, depth: 0 };
    let filter = parser.either()?;
    match parser.tokens.get(parser.at) {
        None => Ok(filter),
        Some(token) => Err(wrong(text, token.column, "expected and, or, or the end")),
    }
}

#[derive(Clone, Debug, PartialEq)]
enum Kind {
    Word(String),
    Quoted(String),
    Sign(&'static str),
}

#[derive(Clone, Debug)]
struct Token {
    kind: Kind,
    column: usize,
}

const SIGNS: [&str; 9] = ["!=", "<=", ">=", "=", "<", ">", "(", ")", ","];

fn tokens(text: &str) -> Result<Vec<Token>> {
    let chars: Vec<char> = text.chars().collect();
    let (mut tokens, mut at) = (Vec::new(), 0);
    while at < chars.len() {
        let (start, rest) = (at, &chars[at..]);
        let kind = if rest[0].is_whitespace() {
            at += 1;
            continue;
        } else if let Some(sign) = SIGNS.iter().find(|sign| rest.starts_with(&sign.chars().collect::<Vec<_>>())) {
            at += sign.len();
            Kind::Sign(sign)
        } else if matches!(rest[0], '"' | '\'') {
            let Some(length) = rest[1..].iter().position(|c| *c == rest[0]) else {
                return Err(wrong(text, start + 1, "this quote is never closed"));
            };
            at += length + 2;
            Kind::Quoted(rest[1..=length].iter().collect())
        } else {
            let ends = |c: &char| c.is_whitespace() || "=!<>(),".contains(*c);
            let length = rest.iter().position(ends).unwrap_or(rest.len());
            if length == 0 {
                return Err(wrong(text, start + 1, "this means nothing here"));
            }
            at += length;
            Kind::Word(rest[..length].iter().collect())
        };
        tokens.push(Token { kind, column: start + 1 });
    }
    Ok(tokens)
}

struct Parser<'a> {
    text: &'a str,
    tokens: Vec<Token>,
    at: usize,
    depth: usize,
}

impl Parser<'_> {
    fn either(&mut self) -> Result<Filter> {
        let mut filter = self.both()?;
        while self.takes_word("or") {
            filter = Filter::Or(Box::new(filter), Box::new(self.both()?));
        }
        Ok(filter)
    }

    fn both(&mut self) -> Result<Filter> {
        let mut filter = self.one()?;
        while self.takes_word("and") {
            filter = Filter::And(Box::new(filter), Box::new(self.one()?));
        }
        Ok(filter)
    }

    fn one(&mut self) -> Result<Filter> {
        self.depth += 1;
        if self.depth > DEEPEST {
            return Err(self.wrong_here("nested too deeply"));
        }
        let filter = if self.takes_word("not") {
            Filter::Not(Box::new(self.one()?))
        } else if self.takes_sign("(") {
            let inner = self.either()?;
            self.wants(")")?;
            inner
        } else {
            self.comparison()?
        };
        self.depth -= 1;
        Ok(filter)
    }

    fn comparison(&mut self) -> Result<Filter> {
        let column = self.column();
        let Some(Kind::Word(field)) = self.next() else {
            return Err(wrong(self.text, column, "expected a field such as state, model or tag.NAME"));
        };
        if self.takes_word("in") {
            self.wants("(")?;
            let mut values = vec![self.value()?];
            while self.takes_sign(",") {
                values.push(self.value()?);
            }
            self.wants(")")?;
            return self.any_of(&field, column, values);
        }
        let at = self.column();
        let Some(Kind::Sign(sign @ ("=" | "!=" | "<" | "<=" | ">" | ">="))) = self.next() else {
            return Err(wrong(self.text, at, "expected =, !=, <, <=, >, >= or in (…)"));
        };
        let value = self.value()?;
        match sign {
            "=" => self.any_of(&field, column, vec![value]),
            "!=" => Ok(Filter::Not(Box::new(self.any_of(&field, column, vec![value])?))),
            _ => self.compared(&field, column, compare(sign), &value),
        }
    }

    fn any_of(&self, field: &str, column: usize, values: Vec<(String, usize)>) -> Result<Filter> {
        if field.eq_ignore_ascii_case("state") {
            let state =
                |(value, at): &(String, usize)| value.parse::<State>().map_err(|why| wrong(self.text, *at, &why));
            return Ok(Filter::State(values.iter().map(state).collect::<Result<_>>()?));
        }
        if let Some(field) = text_field(field) {
            return Ok(Filter::Text(field, values.into_iter().map(|(value, _)| value).collect()));
        }
        let mut filters = Vec::with_capacity(values.len());
        for value in &values {
            filters.push(self.compared(field, column, Compare::Equal, value)?);
        }
        let either = filters.into_iter().reduce(|a, b| Filter::Or(Box::new(a), Box::new(b)));
        either.ok_or_else(|| wrong(self.text, column, "expected a value"))
    }

    fn compared(&self, field: &str, column: usize, compare: Compare, value: &(String, usize)) -> Result<Filter> {
        let (value, at) = value;
        if field.eq_ignore_ascii_case("age") {
            let length = parse_duration(value).map_err(|why| wrong(self.text, *at, &why))?;
            return Ok(Filter::Age(compare, length));
        }
        if let Some(count) = count_field(field) {
            let number = value.parse().map_err(|_| wrong(self.text, *at, "expected a whole number"))?;
            return Ok(Filter::Number(count, compare, number));
        }
        if text_field(field).is_some() || field.eq_ignore_ascii_case("state") {
            return Err(wrong(self.text, column, &format!("{field} holds text: it takes =, != and in (…)")));
        }
        let problem = wrong(self.text, column, &format!("there is no field {field:?}"));
        let near = FIELDS.iter().find(|known| strsim::osa_distance(known, &field.to_lowercase()) <= 2);
        Err(match near {
            Some(near) => problem.hint(format!("did you mean {near}?")),
            None => problem.hint(format!("there are {} and tag.NAME", FIELDS.join(", "))),
        })
    }

    fn value(&mut self) -> Result<(String, usize)> {
        let column = self.column();
        match self.next() {
            Some(Kind::Word(value) | Kind::Quoted(value)) => Ok((value, column)),
            Some(Kind::Sign(_)) | None => Err(wrong(self.text, column, "expected a value")),
        }
    }

    fn wants(&mut self, sign: &str) -> Result<()> {
        if self.takes_sign(sign) { Ok(()) } else { Err(self.wrong_here(&format!("expected {sign}"))) }
    }

    fn takes_sign(&mut self, wanted: &str) -> bool {
        self.takes(|kind| matches!(kind, Kind::Sign(sign) if *sign == wanted))
    }

    fn takes_word(&mut self, wanted: &str) -> bool {
        self.takes(|kind| matches!(kind, Kind::Word(word) if word.eq_ignore_ascii_case(wanted)))
    }

    fn takes(&mut self, fits: impl FnOnce(&Kind) -> bool) -> bool {
        let taken = self.tokens.get(self.at).is_some_and(|token| fits(&token.kind));
        self.at += usize::from(taken);
        taken
    }

    fn next(&mut self) -> Option<Kind> {
        let token = self.tokens.get(self.at)?;
        self.at += 1;
        Some(token.kind.clone())
    }

    fn column(&self) -> usize {
        self.tokens.get(self.at).map_or(self.text.chars().count() + 1, |token| token.column)
    }

    fn wrong_here(&self, what: &str) -> Problem {
        wrong(self.text, self.column(), what)
    }
}

const FIELDS: [&str; 16] = [
    "id",
    "state",
    "queue",
    "model",
    "batch",
    "custom_id",
    "tenant",
    "worker",
    "code",
    "class",
    "priority",
    "attempts",
    "deaths",
    "epoch",
    "row",
    "age",
];

fn text_field(name: &str) -> Option<Field> {
    if let Some(("tag", tag)) = name.split_once('.') {
        return Some(Field::Tag(tag.to_owned()));
    }
    Some(match name.to_ascii_lowercase().as_str() {
        "id" => Field::Id,
        "queue" => Field::Queue,
        "model" => Field::Model,
        "batch" => Field::Batch,
        "custom_id" => Field::CustomId,
        "tenant" => Field::Tenant,
        "worker" => Field::Worker,
        "code" => Field::Code,
        "class" => Field::Class,
        _ => return None,
    })
}

fn count_field(name: &str) -> Option<Count> {
    Some(match name.to_ascii_lowercase().as_str() {
        "priority" => Count::Priority,
        "attempts" => Count::Attempts,
        "deaths" => Count::Deaths,
        "epoch" => Count::Epoch,
        "row" => Count::Row,
        _ => return None,
    })
}

fn compare(sign: &str) -> Compare {
    match sign {
        "<" => Compare::Less,
        "<=" => Compare::AtMost,
        ">" => Compare::More,
        ">=" => Compare::AtLeast,
        _ => Compare::Equal,
    }
}

fn wrong(text: &str, column: usize, what: &str) -> Problem {
    let problem = Problem::usage(format!("the filter cannot be read at column {column}: {what}"));
    problem.detail(text.to_owned()).detail(format!("{}^", " ".repeat(column.saturating_sub(1))))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_name_their_column_and_what_was_expected() {
        for (text, column, what) in [
            ("", 1, "expected a field"),
            ("state", 6, "expected =, !="),
            ("state=", 7, "expected a value"),
            ("state=gone", 7, "is not a state"),
            ("state=dead und age>1h", 12, "expected and, or"),
            ("age>soon", 5, "length of time"),
            ("attempts>many", 10, "whole number"),
            ("model>x", 1, "holds text"),
            ("stat=dead", 1, "no field \"stat\""),
            ("state in (dead", 15, "expected )"),
            ("model='x", 7, "never closed"),
            ("(state=dead", 12, "expected )"),
            ("ümlaut=1", 1, "no field"),
            ("state=dead !", 12, "means nothing"),
        ] {
            let problem = parse(text).unwrap_err().to_string();
            assert!(problem.contains(&format!("column {column}: ")) && problem.contains(what), "{text}: {problem}");
        }
        assert!(parse("stat=dead").unwrap_err().to_string().contains("did you mean state?"));
        assert!(parse(&"(".repeat(1_000)).unwrap_err().to_string().contains("too deeply"));
        assert!(parse(&"not ".repeat(1_000)).is_err());
    }

    #[test]
    fn and_binds_before_or() {
        let grouped = parse("(row=1 and row=2) or row=3").unwrap();
        assert_eq!(parse("row=1 and row=2 or row=3").unwrap(), grouped);
        assert_ne!(parse("row=1 and (row=2 or row=3)").unwrap(), grouped);
    }
}
