//! The users that `deploy/redis/users.acl` ships, on a test's server.

use std::path::Path;

use super::RedisServer;

/// What the tests' users log in with.
pub const PASSWORD: &str = "of-a-test-and-nothing-else";

/// The names and rules of the shipped users, in their order.
///
/// # Panics
/// When a line is not `user NAME RULES…`.
pub fn shipped() -> Vec<(String, Vec<String>)> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/redis/users.acl");
    let text = std::fs::read_to_string(path).expect("the shipped users are there");
    let user = |line: &str| {
        let mut words = line.strip_prefix("user ").expect("a line for a user").split(' ').map(str::to_owned);
        (words.next().expect("a name"), words.collect())
    };
    text.lines().map(user).collect()
}

impl RedisServer {
    /// Makes the shipped users, and gives the address by which one of them comes in.
    ///
    /// # Panics
    /// When the server does not take their rules.
    pub fn url_of(&self, name: &str) -> String {
        for (user, rules) in shipped() {
            let password = format!(">{PASSWORD}");
            let words = ["ACL", "SETUSER", &user].into_iter().chain(rules.iter().map(String::as_str));
            self.must(&words.chain([password.as_str()]).collect::<Vec<_>>());
        }
        self.url().replacen("://", &format!("://{name}:{PASSWORD}@"), 1)
    }
}
