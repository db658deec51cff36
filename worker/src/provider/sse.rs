//! Server-sent events out of the bytes of a stream, under a limit: the data of each, for these APIs name the kind in it.

/// An event that outgrew the limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct TooLarge;

/// Takes bytes as they come and gives events as they are whole. Lines end with LF or CR LF.
#[derive(Debug)]
pub(crate) struct Events {
    bytes: Vec<u8>,
    /// Where the first line not taken yet begins.
    at: usize,
    /// Up to here there is no end of that line.
    scanned: usize,
    data: Vec<u8>,
    has_data: bool,
    most: usize,
}

impl Events {
    /// Events of at most `most` bytes.
    pub(crate) fn new(most: usize) -> Self {
        Self { bytes: Vec::new(), at: 0, scanned: 0, data: Vec::new(), has_data: false, most }
    }

    /// Takes more bytes.
    pub(crate) fn push(&mut self, bytes: &[u8]) {
        self.bytes.drain(..self.at);
        self.scanned = self.scanned.saturating_sub(self.at);
        self.at = 0;
        self.bytes.extend_from_slice(bytes);
    }

    /// The data of the next whole event; `None` until more bytes came. Comments and events without data are passed over.
    pub(crate) fn next(&mut self) -> Option<Result<Vec<u8>, TooLarge>> {
        loop {
            let new = self.bytes.get(self.scanned..).unwrap_or_default();
            let Some(end) = new.iter().position(|byte| *byte == b'\n').map(|end| self.scanned + end) else {
                self.scanned = self.bytes.len();
                return (self.scanned - self.at + self.data.len() > self.most).then_some(Err(TooLarge));
            };
            let line = self.bytes.get(self.at..end).unwrap_or_default();
            let line = line.strip_suffix(b"\r").unwrap_or(line);
            (self.at, self.scanned) = (end + 1, end + 1);
            if line.is_empty() {
                if std::mem::take(&mut self.has_data) {
                    return Some(Ok(std::mem::take(&mut self.data)));
                }
                continue;
            }
            let Some(data) = line.strip_prefix(b"data:") else { continue };
            if self.data.len() + data.len() > self.most {
                return Some(Err(TooLarge));
            }
            if self.has_data {
                self.data.push(b'\n');
            }
            self.has_data = true;
            self.data.extend_from_slice(data.strip_prefix(b" ").unwrap_or(data));
        }
    }

    /// The data of an event that the end of the stream has left without its blank line. Only who reads it can tell whether
    /// it is whole. Asked once `next` has given all.
    pub(crate) fn rest(&mut self) -> Option<Vec<u8>> {
        self.push(b"\n\n");
        self.next().and_then(Result::ok)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn events(pieces: &[&[u8]], most: usize) -> Vec<Result<String, TooLarge>> {
        let (mut events, mut found) = (Events::new(most), Vec::new());
        for piece in pieces {
            events.push(piece);
            while let Some(event) = events.next() {
                found.push(event.map(|data| String::from_utf8(data).unwrap()));
                if found.last().is_some_and(Result::is_err) {
                    return found;
                }
            }
        }
        found
    }

    #[test]
    fn events_are_whole_wherever_the_stream_is_cut_into_pieces() {
        let text = ": hello\r\n\r\nevent: a\ndata: {\"x\":1}\n\ndata:one\r\ndata: two\r\n\r\nid: 7\n\ndata: \u{2602}\n\ndata: half";
        let whole = ["{\"x\":1}", "one\ntwo", "\u{2602}"].map(|text| Ok(text.to_owned()));
        assert_eq!(events(&[text.as_bytes()], 100), whole);
        let bytes: Vec<&[u8]> = text.as_bytes().chunks(1).collect();
        assert_eq!(events(&bytes, 100), whole);
    }

    #[test]
    fn the_end_of_the_stream_ends_its_last_event() {
        for (text, rest) in [
            ("data: a\n\ndata: b", Some("b")),
            ("data: a\n\ndata: b\r\n", Some("b")),
            ("data: a\n\n", None),
            ("data: a\n\n: bye", None),
        ] {
            let mut events = Events::new(100);
            events.push(text.as_bytes());
            assert_eq!(events.next(), Some(Ok(b"a".to_vec())), "{text:?}");
            assert_eq!((events.next(), events.rest().as_deref()), (None, rest.map(str::as_bytes)), "{text:?}");
        }
    }

    #[test]
    fn an_event_without_an_end_takes_no_more_than_its_limit() {
        let long = [b"data: ".as_slice(), &[b'x'; 60]].concat();
        assert_eq!(events(&[&long], 50), [Err(TooLarge)]);
        assert_eq!(events(&[b"data: 0123456789\n", b"data: 0123456789\n"], 15), [Err(TooLarge)]);
    }
}
