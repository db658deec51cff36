//! Mistakes that a person can see before anything runs: told at once, with nothing done.

use super::*;

#[test]
fn a_text_file_of_several_lines_must_say_what_it_is() {
    let home = Home::new();
    let text = (0..1_500).fold(String::new(), |text, n| text + &format!("prompt {n}\n\n"));
    std::fs::write(home.path("prompts.txt"), text).unwrap();
    let unclear = home.promptq(&["run", "prompts.txt", "-m", "mock", "-o", "out.jsonl"]).exits(2);
    let unclear = unclear.says("error[ambiguous-input]: prompts.txt has 1,500 lines: one prompt or one a line?");
    unclear.says("hint: --in lines").says("hint: --in txt");
    assert!(!home.path("out.jsonl").exists());
    for clear in [&["prompts.txt", "--in", "txt"][..], &["*.txt"], &["notes.md"], &["one.txt"]] {
        std::fs::write(home.path("notes.md"), "# one\ntwo\n").unwrap();
        std::fs::write(home.path("one.txt"), "only this\n\n").unwrap();
        home.promptq(&[&["run", "-m", "mock:latency=0"], clear].concat()).exits(0);
    }
}

#[test]
fn a_length_without_a_unit_says_what_to_write() {
    let home = Home::new();
    home.rows("rows.jsonl", 1);
    home.promptq(&["run", "rows.jsonl", "-m", "mock", "--timeout", "5"]).exits(2).says("write 5s");
}
