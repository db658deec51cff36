//! A URL that may hold a password: shown without it, handed out whole only on request.

use std::fmt;

use url::Url;

/// The address of a broker, ledger or store.
#[derive(Clone, PartialEq, Eq)]
pub struct Address(Url);

impl Address {
    /// Checks and takes a URL.
    ///
    /// # Errors
    /// Says what is wrong without repeating the text, which may hold a password.
    pub fn new(text: &str) -> Result<Self, String> {
        Url::parse(text).map(Self).map_err(|error| format!("is not a URL ({error})"))
    }

    /// The whole URL, password and all: for connecting only.
    pub fn expose(&self) -> &str {
        self.0.as_str()
    }

    /// The part before the colon.
    pub fn scheme(&self) -> &str {
        self.0.scheme()
    }

    /// The same with this user and password in it; `Err` where such URLs have none.
    pub(super) fn with_login(mut self, user: Option<&str>, password: Option<&str>) -> Result<Self, String> {
        // What the URL encodes by itself leaves a percent sign as it is, and it would be decoded as one on the way out.
        let escaped = |text: &str| text.replace('%', "%25");
        let taken = user.is_none_or(|user| self.0.set_username(&escaped(user)).is_ok())
            && password.is_none_or(|password| self.0.set_password(Some(&escaped(password))).is_ok());
        if taken { Ok(self) } else { Err(format!("{}:// takes no user or password", self.0.scheme())) }
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&masked(&self.0))
    }
}

impl fmt::Debug for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// A URL as it may be shown: password and query masked; text that is no URL is masked whole.
pub fn redact_url(text: &str) -> String {
    Url::parse(text).map_or_else(|_| "***".to_owned(), |url| masked(&url))
}

fn masked(url: &Url) -> String {
    // Behind a bare colon anything may stand, a login with its scheme forgotten included.
    if url.cannot_be_a_base() && !matches!(url.scheme(), "sqlite" | "memory") {
        return format!("{}:***", url.scheme());
    }
    let mut shown = url.clone();
    if shown.password().is_some() && shown.set_password(Some("***")).is_err() {
        return "***".to_owned();
    }
    if shown.query().is_some() {
        shown.set_query(Some("***"));
    }
    shown.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn passwords_are_never_shown() {
        let shown = [
            ("amqp://me:hunter2@host:5672/v", "amqp://me:***@host:5672/v"),
            ("rediss://:hunter2@host", "rediss://:***@host"),
            ("sqlite:///var/q.db", "sqlite:///var/q.db"),
            ("https://host/?token=hunter2", "https://host/?***"),
            ("hunter2", "***"),
            ("me:hunter2@host", "me:***"),
            ("sqlite:q.db", "sqlite:q.db"),
        ];
        for (url, expected) in shown {
            assert_eq!(redact_url(url), expected);
        }
        let address = Address::new("amqp://host").unwrap().with_login(Some("me"), Some("hunter2")).unwrap();
        assert_eq!(address.expose(), "amqp://me:hunter2@host");
        assert_eq!(format!("{address} {address:?}"), "amqp://me:***@host amqp://me:***@host");
        assert!(Address::new("hunter2").is_err_and(|why| !why.contains("hunter2")));
        assert!(Address::new("sqlite:///q.db").unwrap().with_login(Some("me"), None).is_err());
    }
}
