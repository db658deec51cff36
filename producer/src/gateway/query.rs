//! What stands behind the `?` of an address. Which parameters a route takes is in its table; any other is refused, and so
//! is one that is given twice.

use std::borrow::Cow;
use std::collections::BTreeSet;

use axum::http::Uri;

use super::problem::{Problem, Result};

/// The parameters as they were given.
pub(super) fn pairs(uri: &Uri) -> impl Iterator<Item = (Cow<'_, str>, Cow<'_, str>)> {
    url::form_urlencoded::parse(uri.query().unwrap_or_default().as_bytes())
}

/// Refuses all but these, each once.
pub(super) fn check(uri: &Uri, takes: &[&str]) -> Result<()> {
    let mut seen = BTreeSet::new();
    for (name, _) in pairs(uri) {
        if !takes.contains(&&*name) {
            let known = if takes.is_empty() { "none".to_owned() } else { takes.join(", ") };
            return Err(Problem::new("bad-request", format!("{name:?} is no parameter of this; it takes {known}")));
        }
        if !seen.insert(name.clone()) {
            return Err(Problem::new("bad-request", format!("{name} is given twice; give one")));
        }
    }
    Ok(())
}

/// That a parameter is not what it may be.
pub(super) fn wrong(name: &str, value: &str, allowed: &str) -> Problem {
    Problem::new("bad-request", format!("{name} is {value:?}, not {allowed}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_route_does_not_take_is_refused_and_so_is_what_comes_twice() {
        let of = |query: &str, takes: &[&str]| {
            let told = check(&format!("/v1/batches{query}").parse().unwrap(), takes);
            told.map_err(|problem| problem.body()).err().unwrap_or_default()
        };
        let takes = ["batch", "queue"];
        for fine in ["", "?", "?batch=a&queue=b", "?b%61tch=a"] {
            assert_eq!(of(fine, &takes), "", "{fine}");
        }
        assert!(of("?bach=x", &takes).contains(r#"\"bach\" is no parameter of this; it takes batch, queue"#));
        assert!(of("?batch=a&batch=b", &takes).contains("batch is given twice"));
        assert!(of("?b%61tch=a&batch=a", &takes).contains("batch is given twice"));
        assert!(of("?wait", &[]).contains(r#"\"wait\" is no parameter of this; it takes none"#));
    }
}
