//! A line cut where its body belongs, for whoever sends the body on as it comes out of object storage.

use crate::broker::LeaseId;
use crate::outcome::Body;
use crate::record::Record;

/// What stands before the body of an answer in [`super::result_line`], and what after it. `promptq.text` is null.
pub fn cut_line(record: &Record) -> (String, String) {
    let mark = format!("\"{}\"", LeaseId::random());
    let whole = super::line(record, Some(&Body::Json(mark.clone())));
    let (before, after) = whole.split_once(&mark).unwrap_or((&whole, ""));
    (before.to_owned(), after.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::broker::head;
    use crate::job::{Job, Queue};
    use crate::record::{Answer, End, Output, Stored};
    use crate::result_line::result_line;
    use crate::work::Work;

    #[test]
    fn the_pieces_around_a_body_are_the_line_without_its_text() {
        let job = Job::new(Queue::standard(), Work::prompt(Some("m"), "x"));
        let mut record = Record::unrun(&head(&job), End::Succeeded, None, job.created_at);
        let stored = Stored { key: "out/1/2".into(), sha256: "00".into(), bytes: 9, json: true };
        record.answer = Some(Answer {
            status_code: 200,
            request_id: None,
            model: None,
            finish_reason: None,
            output: Output::Stored(stored),
            detail: None,
            origin: None,
        });
        let (before, after) = cut_line(&record);
        let body = r#"{"choices":[{"message":{"content":"hi"}}]}"#;
        let whole = result_line(&record, Some(&Body::Json(body.into())));
        assert!(whole.contains(r#""text":"hi""#), "{whole}");
        assert_eq!(format!("{before}{body}{after}"), whole.replace(r#""text":"hi""#, r#""text":null"#));
    }
}
