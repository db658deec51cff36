//! What a client is told when something cannot be done: problem+json (RFC 9457) with a stable `type` and `code`. Of
//! trouble on this side it learns no more than that; the log says what it was.

use axum::body::Body;
use axum::http::header::{CONTENT_TYPE, RETRY_AFTER};
use axum::http::{HeaderValue, Response, StatusCode};
use axum::response::IntoResponse;
use promptq_common::error::Error;
use serde_json::{Map, Value, json};

use crate::input::Fault;
use crate::problem::{self, Exit};

/// What went wrong with a request.
#[derive(Clone, Debug)]
pub(super) struct Problem {
    code: &'static Code,
    detail: String,
    retry_after: Option<u64>,
    more: Box<Map<String, Value>>,
    is_counted: bool,
}

/// On an answer: what is wrong was counted where the job was put in.
#[derive(Clone, Copy, Debug)]
pub(super) struct Counted;

/// A code, its status and its title.
pub(super) type Code = (&'static str, StatusCode, &'static str);

/// Shorthand for what handlers return.
pub(super) type Result<T, E = Problem> = std::result::Result<T, E>;

/// Every code with its status and title: what the specification lists.
pub(super) static CODES: &[Code] = &[
    ("bad-request", StatusCode::BAD_REQUEST, "The request is not understood"),
    ("no-key", StatusCode::UNAUTHORIZED, "An API key is needed"),
    ("bad-key", StatusCode::UNAUTHORIZED, "The API key is good for nothing"),
    ("not-allowed", StatusCode::FORBIDDEN, "The API key may not do that"),
    ("not-found", StatusCode::NOT_FOUND, "There is no such thing"),
    ("no-queue", StatusCode::NOT_FOUND, "There is no such queue"),
    ("bad-method", StatusCode::METHOD_NOT_ALLOWED, "This is not done there"),
    ("too-slow", StatusCode::REQUEST_TIMEOUT, "The request came too slowly"),
    ("conflict", StatusCode::CONFLICT, "It contradicts what was submitted before"),
    ("other-queue", StatusCode::CONFLICT, "The batch belongs to another queue"),
    ("too-large", StatusCode::PAYLOAD_TOO_LARGE, "The request is too large"),
    ("uri-too-long", StatusCode::URI_TOO_LONG, "The address is too long"),
    ("head-too-large", StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE, "The headers are too large"),
    ("bad-type", StatusCode::UNSUPPORTED_MEDIA_TYPE, "The body is of the wrong type"),
    ("wrong-host", StatusCode::MISDIRECTED_REQUEST, "This gateway is not that host"),
    ("bad-row", StatusCode::UNPROCESSABLE_ENTITY, "A job is wrong"),
    ("duplicate-id", StatusCode::UNPROCESSABLE_ENTITY, "Two jobs have one id"),
    ("no-rows", StatusCode::UNPROCESSABLE_ENTITY, "There are no jobs"),
    ("too-many-requests", StatusCode::TOO_MANY_REQUESTS, "The API key asks too often"),
    ("answer-gone", StatusCode::GONE, "The answer is not kept any more"),
    FAILED,
    ("unreachable", StatusCode::SERVICE_UNAVAILABLE, "The broker cannot be reached"),
    ("busy", StatusCode::SERVICE_UNAVAILABLE, "The gateway has too much to do"),
    ("stopping", StatusCode::SERVICE_UNAVAILABLE, "The gateway is being stopped"),
];

const FAILED: Code = ("failed", StatusCode::INTERNAL_SERVER_ERROR, "The gateway failed");

impl Problem {
    /// One of [`CODES`]; any other is `failed`.
    pub(super) fn new(code: &str, detail: impl Into<String>) -> Self {
        let code = CODES.iter().find(|(known, ..)| *known == code).unwrap_or(&FAILED);
        let retry_after = (code.1 == StatusCode::SERVICE_UNAVAILABLE).then_some(1);
        Self { code, detail: detail.into(), retry_after, more: Box::default(), is_counted: false }
    }

    /// How to mend it.
    pub(super) fn hint(self, hint: impl Into<String>) -> Self {
        self.with("hint", hint.into())
    }

    /// One more member.
    pub(super) fn with(mut self, name: &str, value: impl Into<Value>) -> Self {
        self.more.insert(name.to_owned(), value.into());
        self
    }

    /// When to come again, in seconds.
    pub(super) fn after(mut self, seconds: u64) -> Self {
        self.retry_after = Some(seconds.max(1));
        self
    }

    /// That there is no such job, for this key.
    pub(super) fn no_job(id: &str) -> Self {
        Self::new("not-found", format!("there is no job {id:?}"))
    }

    /// The status.
    pub(super) fn status(&self) -> StatusCode {
        self.code.1
    }

    /// What is wrong with a job that came by itself.
    pub(super) fn of_fault(fault: Fault) -> Self {
        let Fault { column, what, excerpt, hint } = fault;
        let mut problem = Self::new("bad-row", what);
        if let Some(column) = column {
            problem = problem.with("where", json!({ "column": column, "excerpt": excerpt }));
        }
        match hint {
            Some(hint) => problem.hint(hint),
            None => problem,
        }
    }
}

impl From<problem::Problem> for Problem {
    fn from(problem: problem::Problem) -> Self {
        if problem.exit == Exit::Unreachable {
            tracing::warn!(%problem, "the broker cannot be reached");
            return Self::new("unreachable", "the broker cannot be reached; the same request may succeed later");
        }
        // What is wrong with a submission is said of its rows; whatever else is wrong is wrong here.
        let is_theirs = CODES.iter().any(|(code, status, _)| *code == problem.slug && status.is_client_error())
            && problem.slug != "not-allowed";
        if !is_theirs {
            tracing::error!(%problem, "a request failed");
            return Self::new("failed", "the gateway could not do it; its log says why");
        }
        let what = match problem.slug {
            // Its name is not for every key.
            "other-queue" => "the batch's jobs are in another queue than the one asked for".to_owned(),
            _ => problem.what,
        };
        let mut told = Self::new(problem.slug, what);
        // A command's problem: the gateway's own bodies that are too large never get so far.
        told.is_counted = problem.slug == "too-large";
        if !problem.details.is_empty() {
            told = told.with("details", problem.details);
        }
        let skips = problem.hints.iter().any(|hint| hint.contains("--skip-invalid"));
        match hint_of(problem.slug, skips) {
            Some(hint) => told.hint(hint),
            None => told,
        }
    }
}

/// How a client mends what a person mends by a flag. `skips`: some rows can be used without the others.
fn hint_of(slug: &str, skips: bool) -> Option<&'static str> {
    Some(match slug {
        "bad-row" if !skips => "no line can be used: mend them",
        "bad-row" => "mend the lines, or ask with ?skip_invalid=true to enqueue the others",
        "duplicate-id" => "give every line its own id, or ask with ?skip_invalid=true to keep the first of each",
        "conflict" => {
            "?on_conflict=skip leaves them out and keeps the earlier jobs; another key or batch makes new ones"
        }
        "other-queue" => "name its queue, or another batch",
        _ => return None,
    })
}

impl From<Error> for Problem {
    fn from(error: Error) -> Self {
        problem::Problem::from(error).into()
    }
}

impl Problem {
    /// As JSON.
    pub(super) fn body(&self) -> String {
        let (code, status, title) = self.code;
        let mut body = json!({
            "type": format!("/problems/{code}"),
            "title": title,
            "status": status.as_u16(),
            "code": code,
            "detail": self.detail,
        });
        if let Some(object) = body.as_object_mut() {
            object.extend(self.more.iter().map(|(name, value)| (name.clone(), value.clone())));
        }
        body.to_string()
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response<Body> {
        let status = self.status();
        let mut response = (status, self.body()).into_response();
        if self.is_counted {
            response.extensions_mut().insert(Counted);
        }
        let headers = response.headers_mut();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/problem+json"));
        if let Some(seconds) = self.retry_after {
            headers.insert(RETRY_AFTER, seconds.into());
        }
        if status == StatusCode::UNAUTHORIZED {
            headers.insert("www-authenticate", HeaderValue::from_static("Bearer"));
        }
        response
    }
}

#[cfg(test)]
mod tests {
    use promptq_common::error::Kind;

    use super::*;

    #[test]
    fn trouble_on_this_side_tells_no_addresses() {
        for (kind, status, code) in
            [(Kind::Unavailable, 503, "unreachable"), (Kind::Denied, 500, "failed"), (Kind::Config, 500, "failed")]
        {
            let error =
                Error::new(kind, "connect", "redis://inner-host:6379").because(std::io::Error::other("10.0.0.7"));
            let problem = Problem::from(error);
            assert_eq!((problem.status().as_u16(), problem.code.0), (status, code));
            assert!(!format!("{problem:?}").contains("inner-host") && !format!("{problem:?}").contains("10.0.0.7"));
            assert_eq!(problem.retry_after.is_some(), status == 503);
        }
    }

    #[test]
    fn what_is_wrong_with_a_submission_is_told_whole_and_without_flags() {
        let slip = problem::Problem::new(Exit::Usage, "bad-row", "2 rows are wrong").detail("row 2: empty");
        let problem = Problem::from(slip.hint("mend the rows, or pass --skip-invalid to enqueue the others"));
        assert_eq!((problem.status().as_u16(), problem.detail.as_str()), (422, "2 rows are wrong"));
        assert_eq!(problem.more["details"], json!(["row 2: empty"]));
        assert!(!format!("{problem:?}").contains("--"), "{problem:?}");
    }
}
