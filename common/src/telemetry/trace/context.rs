//! A place in a trace, as W3C's `traceparent` says it, and as bytes that travel with jobs and records.

use std::fmt;

/// A place in a trace: what is caused there is its child. Of what vendors say beside it (`tracestate`) nothing is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Context {
    trace: [u8; 16],
    span: [u8; 8],
    sampled: bool,
}

impl Context {
    /// The header, and the key under `promptq` in a job line.
    pub const NAME: &str = "traceparent";
    /// How many bytes it has as [`Context::to_bytes`] gives it.
    pub const BYTES: usize = 25;

    /// What a caller says: `00-<trace id>-<span id>-<flags>`. `None` for anything else, which is to be treated as though
    /// nothing had been said. What later versions of the header append is passed over.
    pub fn parse(text: &str) -> Option<Self> {
        let bytes = text.trim().as_bytes();
        let (known, more) = bytes.split_at_checked(55)?;
        let version: [u8; 1] = hex(known.get(..2)?)?;
        let fits = match version[0] {
            0 => more.is_empty(),
            0xff => false,
            _ => more.first().is_none_or(|next| *next == b'-'),
        };
        if !fits || [2, 35, 52].iter().any(|at| known.get(*at) != Some(&b'-')) {
            return None;
        }
        let (trace, span) = (hex(known.get(3..35)?)?, hex(known.get(36..52)?)?);
        let flags: [u8; 1] = hex(known.get(53..55)?)?;
        (trace != [0; 16] && span != [0; 8]).then_some(Self { trace, span, sampled: flags[0] & 1 == 1 })
    }

    /// The beginning of a trace; a fresh one unless told which.
    pub fn root(trace: Option<[u8; 16]>, sampled: bool) -> Self {
        let trace = trace.filter(|id| *id != [0; 16]).unwrap_or_else(|| rand::random::<u128>().max(1).to_be_bytes());
        Self { trace, span: fresh_span(), sampled }
    }

    /// A place below this one.
    pub fn child(&self) -> Self {
        Self { span: fresh_span(), ..*self }
    }

    /// Whether somebody decided that this trace is kept.
    pub fn is_sampled(&self) -> bool {
        self.sampled
    }

    /// The trace's id, 32 hexadecimal digits.
    pub fn trace_id(&self) -> String {
        digits(&self.trace)
    }

    /// The span's id, 16 hexadecimal digits.
    pub fn span_id(&self) -> String {
        digits(&self.span)
    }

    /// The last four bytes of the trace's id: what is random in every id, a job's too, which counts in those before.
    pub(super) fn dice(&self) -> u32 {
        self.trace.last_chunk().map(|last| u32::from_be_bytes(*last)).unwrap_or_default()
    }

    pub(super) fn sampled(self, sampled: bool) -> Self {
        Self { sampled, ..self }
    }

    /// As bytes that [`Context::from_bytes`] reads.
    pub fn to_bytes(&self) -> [u8; Self::BYTES] {
        let mut bytes = [u8::from(self.sampled); Self::BYTES];
        bytes[..16].copy_from_slice(&self.trace);
        bytes[16..24].copy_from_slice(&self.span);
        bytes
    }

    /// From those bytes; `None` for what they never say.
    pub fn from_bytes(bytes: &[u8; Self::BYTES]) -> Option<Self> {
        let (trace, rest) = bytes.split_first_chunk::<16>()?;
        let (span, flag) = rest.split_first_chunk::<8>()?;
        let is_one = *trace != [0; 16] && *span != [0; 8] && matches!(flag, [0 | 1]);
        is_one.then_some(Self { trace: *trace, span: *span, sampled: *flag == [1] })
    }
}

/// As the header has it.
impl fmt::Display for Context {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "00-{}-{}-{:02x}", self.trace_id(), self.span_id(), u8::from(self.sampled))
    }
}

fn digits(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |text, byte| text + &format!("{byte:02x}"))
}

fn fresh_span() -> [u8; 8] {
    rand::random::<u64>().max(1).to_be_bytes()
}

/// Bytes from digits, all of them in lower case.
fn hex<const N: usize>(digits: &[u8]) -> Option<[u8; N]> {
    let digit = |byte: u8| match byte {
        b'0'..=b'9' => Some(byte - b'0'),
        b'a'..=b'f' => Some(byte - b'a' + 10),
        _ => None,
    };
    let mut bytes = [0; N];
    for (byte, pair) in bytes.iter_mut().zip(digits.chunks_exact(2)) {
        *byte = (digit(pair[0])? << 4) | digit(pair[1])?;
    }
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    const SAID: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

    #[test]
    fn what_is_said_is_said_again() {
        let said = Context::parse(SAID).unwrap();
        assert_eq!((said.to_string().as_str(), said.is_sampled()), (SAID, true));
        assert_eq!(Context::from_bytes(&said.to_bytes()), Some(said));
        let later = Context::parse(&format!("cc{}-what-comes", SAID.get(2..).unwrap())).unwrap();
        assert_eq!(later, said, "a later version begins like this one");
        assert!(!Context::parse(&SAID.replace("-01", "-02")).unwrap().is_sampled(), "other flags say something else");
        let no = SAID.replace("-01", "-00");
        assert_eq!(Context::parse(&no).unwrap().to_string(), no, "nobody is made to keep a trace");
        assert!(Context::parse(&SAID.replace("-01", "-ff")).unwrap().is_sampled(), "beside flags that are not known");
        assert_eq!(Context::parse(&format!(" {SAID}\n")), Some(said), "as variables and headers are padded");
        let child = said.child();
        assert_eq!((child.trace_id(), child.is_sampled()), (said.trace_id(), true));
        assert_ne!(child.span_id(), said.span_id());
    }

    #[test]
    fn anything_else_says_nothing() {
        let zeros = |from: usize, to: usize| SAID.replace(SAID.get(from..to).unwrap(), &"0".repeat(to - from));
        let strange = [
            String::new(),
            "4bf92f3577b34da6a3ce929d0e0e4736".to_owned(),
            SAID.to_uppercase(),
            SAID.replace("00-4", "ff-4"),
            SAID.replace('-', "_"),
            format!("{SAID}-more"),
            format!("cc{}.more", SAID.get(2..).unwrap()),
            SAID.replace("4bf9", "4bf\u{e9}"),
            SAID.replace("-01", "-0"),
            SAID.replace("-01", "-0x"),
            zeros(3, 35),
            zeros(36, 52),
        ];
        for text in strange {
            assert_eq!(Context::parse(&text), None, "{text:?}");
        }
        assert_eq!(Context::from_bytes(&[0; Context::BYTES]), None);
        assert_eq!(Context::from_bytes(&[7; Context::BYTES]), None);
        let bytes = Context::parse(SAID).unwrap().to_bytes();
        for zero in [0..16, 16..24] {
            let mut bytes = bytes;
            bytes[zero.clone()].fill(0);
            assert_eq!(Context::from_bytes(&bytes), None, "{zero:?}");
        }
    }

    #[test]
    fn a_trace_begins_where_it_is_told_and_never_nowhere() {
        let of = |trace| Context::root(trace, true);
        assert_eq!(of(Some([7; 16])).trace_id(), "07".repeat(16));
        for root in [of(None), of(Some([0; 16]))] {
            assert_eq!(Context::parse(&root.to_string()), Some(root));
        }
        assert_ne!(of(None).trace_id(), of(None).trace_id());
    }
}
