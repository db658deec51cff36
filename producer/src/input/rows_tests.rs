//! What comes out of files, well-formed and not.

use clap::Parser;

use super::*;
use crate::input::args::InputArgs;

#[derive(Parser)]
struct Cli {
    #[command(flatten)]
    input: InputArgs,
}

/// The rows of a file of this name and content, as `line: row` or `line:column! fault`.
fn read(name: &str, content: &[u8], flags: &[&str]) -> Vec<String> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join(name);
    std::fs::write(&path, content).unwrap();
    let path = path.to_str().unwrap();
    let cli = Cli::parse_from(["test", path].iter().chain(flags));
    let sources = Source::all(&cli.input).unwrap();
    let mut rows = match Rows::open(&sources[0]) {
        Ok(rows) => rows,
        Err(problem) => return vec![problem.to_string().replace(path, name)],
    };
    let mut seen = Vec::new();
    loop {
        match rows.next_row() {
            Ok(None) => return seen,
            Err(problem) => {
                seen.push(problem.what.replace(path, name));
                return seen;
            }
            Ok(Some((place, Ok(row)))) => {
                let text = match row {
                    Row::Columns(columns) => Value::Object(columns).to_string(),
                    Row::Json(text) | Row::Text { text, .. } => text,
                };
                seen.push(format!("{}: {text}", place.line));
            }
            Ok(Some((place, Err(fault)))) => {
                seen.push(format!("{}:{}! {}", place.line, fault.column.unwrap_or(0), fault.what));
            }
        }
    }
}

#[test]
fn lines_skip_blanks_and_keep_their_numbers() {
    assert_eq!(read("a.txt", b"\xef\xbb\xbfone\r\n\n  \ntwo", &["--in", "lines"]), ["1: one", "4: two"]);
    assert_eq!(read("a.jsonl", b"{}\n\n{\"a\":1}\n", &[]), ["1: {}", "3: {\"a\":1}"]);
    assert_eq!(read("a.jsonl", b"{}\nab\xff\n{}", &[]), ["1: {}", "2:3! not UTF-8", "3: {}"]);
}

#[test]
fn csv_keeps_newlines_in_quotes_and_refuses_ragged_rows() {
    let text = "\u{feff}id,text\n1,\"a \"\"b\"\"\nc\"\n2,x,y\n\n3,ü\n";
    let crlf = text.replace('\n', "\r\n").replace("b\"\"\r\n", "b\"\"\n");
    for text in [text, &crlf] {
        assert_eq!(
            read("a.csv", text.as_bytes(), &[]),
            [
                r#"2: {"id":"1","text":"a \"b\"\nc"}"#,
                "4:0! 3 columns where the heading row has 2",
                r#"6: {"id":"3","text":"ü"}"#,
            ]
        );
    }
    assert_eq!(read("a.tsv", b"id\ttext\n1\ta,b\n", &[]), [r#"2: {"id":"1","text":"a,b"}"#]);
    assert_eq!(
        read("a.csv", b"id,text\n1,\xff\n2,b\n", &[]),
        ["2:0! column \"text\" is not UTF-8", r#"3: {"id":"2","text":"b"}"#]
    );
}

#[test]
fn a_quote_open_at_the_end_of_the_file_is_named_by_its_line() {
    let open =
        "cannot read a.csv: the quote that opens in line 3 is never closed: the rest of the file would be one field";
    let text = "id,text\n1,\"a \"\"b\"\" \"\n2,\"open\n3,c\n4,d\n";
    assert_eq!(read("a.csv", text.as_bytes(), &[])[1..], [open]);
    assert_eq!(read("a.csv", text.replace(",\"open", ",d,\"open").as_bytes(), &[])[1..], [open]);
    assert_eq!(
        read("a.csv", b"id,text\n1,a\"b\n2,\"c\"d\"e\n3,\"\"", &[]).len(),
        3,
        "quotes inside fields do not count"
    );
    assert!(read("a.csv", b"\"id,text\n1,a\n", &[])[0].contains("opens in line 1"));
}

#[test]
fn another_separator_is_noticed_and_can_be_named() {
    let wrong = &read("a.csv", b"id;text\n1;a\n", &[])[0];
    assert!(wrong.contains("is it separated by ';'?") && wrong.contains("--delimiter ';'"), "{wrong}");
    assert!(read("a.csv", b"id\ttext\n", &[])[0].contains("--delimiter '\\t'"));
    assert_eq!(read("a.csv", b"id;text\n1;a,b\n", &["--delimiter", ";"]), [r#"2: {"id":"1","text":"a,b"}"#]);
    assert_eq!(read("a.csv", b"a;b\n1\n", &["--delimiter", ","]), [r#"2: {"a;b":"1"}"#]);
}

#[test]
fn headings_must_name_every_column_once() {
    assert!(read("a.csv", b"id,id\n", &[])[0].contains("two columns named \"id\""));
    assert!(read("a.csv", b"id,\n", &[])[0].contains("no name for column 2"));
    assert!(read("a.csv", b"", &[])[0].contains("no heading row"));
}

#[test]
fn a_quote_never_closed_stops_before_it_fills_the_memory() {
    let mut text = b"id,text\n1,\"open".to_vec();
    text.resize(LONGEST + (1 << 20), b'x');
    assert_eq!(
        read("a.csv", &text, &[]),
        ["cannot read a.csv: the row that begins in line 2 is longer than 16 MiB; is a quote never closed?"]
    );
}

#[test]
fn a_line_that_is_too_long_is_refused_and_the_next_one_read() {
    let mut text = vec![b'x'; LONGEST + 5];
    text.extend(b"\nnext\n");
    assert_eq!(read("a", &text, &["--in", "lines"]), ["1:0! longer than 16 MiB, the most one job may be", "2: next"]);
}

#[test]
fn a_whole_file_is_one_prompt() {
    assert_eq!(read("a.md", b"\xef\xbb\xbf# One\n\ntwo\n", &[]), ["1: # One\n\ntwo\n"]);
    assert_eq!(read("a.md", b"\n", &[]), ["1:0! the file is empty"]);
}
