//! Whether the other side's words repeat what a job said: such words are left out of failures, which are shown and kept.

use std::collections::HashSet;

/// The shortest and the longest piece of a text that counts as an echo when a message repeats it, in bytes. Longer than
/// the names of parameters and most models, which a useful message does repeat.
const ECHO: (usize, usize) = (8, 20);

/// Whether the message repeats a piece of the text: all of a short one, or any [`ECHO`] bytes of a longer one. How either is
/// broken into lines does not matter.
pub(crate) fn echoes(message: &str, text: &str) -> bool {
    let (message, text) = (folded(message), folded(text));
    let (least, most) = ECHO;
    let piece = text.len().min(most);
    if piece < least {
        return false;
    }
    let pieces: HashSet<&[u8]> = message.as_bytes().windows(piece).collect();
    text.as_bytes().windows(piece).any(|window| pieces.contains(window))
}

/// The words with one space between them; a line's end may also stand as JSON writes it.
fn folded(text: &str) -> String {
    let text = text.replace("\\n", " ").replace("\\r", " ").replace("\\t", " ");
    let words = text.split(|c: char| c.is_whitespace() || c.is_control()).filter(|word| !word.is_empty());
    words.collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_piece_of_a_text_is_an_echo_and_a_word_is_none() {
        let text = "the patient's name is Ada Lovelace and she lives in London";
        assert!(echoes("near: 'name is Ada Lovelace and'", text));
        assert!(!echoes("near: 'Ada Lovelace'", text));
        assert!(echoes("bad key sk-12345!", "sk-12345") && !echoes("the end", "the end"));
        assert!(!echoes("", text) && !echoes("anything", ""));
        let lines = "Ada\nis ill\r\n\tand\nin bed\n";
        for message in
            ["not 'Ada is ill and in bed'", r"input: Ada\nis ill\r\n\tand\nin bed", "Ada  is\u{a0}ill and in bed"]
        {
            assert!(echoes(message, lines), "{message}");
        }
    }
}
