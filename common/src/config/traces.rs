//! Where spans go, in section `telemetry`, with the names that every program traced with `OpenTelemetry` knows.

use secrecy::{ExposeSecret, SecretString};
use url::Url;

use super::address::redact_url;
use super::error::Origin;
use super::reader::Reader;
use crate::telemetry::trace::Sampler;

/// What is told of traces. There is none unless a collector is named.
#[derive(Clone, Debug)]
pub struct Traces {
    /// Where spans are posted, whole.
    pub endpoint: String,
    /// What else the requests carry: `name=value,name=value`, values percent-encoded.
    pub headers: Option<SecretString>,
    /// What this process is called there.
    pub service: Option<String>,
    /// What else is told of this process.
    pub resource: Vec<(String, String)>,
    /// Which traces are kept.
    pub sampler: Sampler,
    /// What is to be said once where spans are sent: the environment asks for a protocol that is not spoken.
    pub remark: Option<Remark>,
}

/// What is to be said once.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Remark {
    /// That is likely to go well.
    Note(String),
    /// That is likely to be in the way.
    Warning(String),
}

impl Traces {
    /// `name=value,name=value`, values percent-encoded, as text of one kind.
    ///
    /// # Errors
    /// Which of them it is not, by its number.
    pub fn pairs(text: &str) -> Result<Vec<(String, String)>, String> {
        let parts = text.split(',').map(str::trim).enumerate().filter(|(_, part)| !part.is_empty());
        parts
            .map(|(place, part)| {
                let bad = || format!("must be name=value,name=value; number {} is not", place + 1);
                let (name, value) = part.split_once('=').ok_or_else(bad)?;
                let value = percent_encoding::percent_decode_str(value.trim()).decode_utf8().map_err(|_| bad())?;
                let name = name.trim();
                if name.is_empty() { Err(bad()) } else { Ok((name.to_owned(), value.into_owned())) }
            })
            .collect()
    }
}

pub(super) fn traces(r: &mut Reader<'_>) -> Option<Traces> {
    let at = |name: &'static str| ["telemetry", name];
    let (endpoint, remark) = (endpoint(r), protocol(r));
    let (is_off, service, resource, sampler) = r.shared(|r| {
        let exporter = r.parsed(&at("traces_exporter"), Some("otlp".to_owned()), exporter);
        let is_off = r.boolean(&at("otel_sdk_disabled"), false) || exporter.as_deref() == Some("none");
        let resource = r.text(&at("resource_attributes")).unwrap_or_default();
        let resource = Traces::pairs(&resource).map_err(|why| r.wrong(&at("resource_attributes"), &why));
        (is_off, r.text(&at("service_name")), resource.unwrap_or_default(), sampler(r))
    });
    let endpoint = endpoint.filter(|_| !is_off);
    let headers = r.secret(&at("otlp_headers"));
    if let Some(Err(why)) =
        headers.as_ref().filter(|_| endpoint.is_some()).map(|headers| Traces::pairs(headers.expose_secret()))
    {
        r.wrong(&at("otlp_headers"), &why);
    }
    Some(Traces { endpoint: endpoint?, headers, service, resource, sampler, remark })
}

/// One of `otlp` and `none`: of a list the first if it is in it.
fn exporter(words: &str) -> Result<String, String> {
    let mut words = words.split(',').map(str::trim);
    if words.clone().any(|word| word == "otlp") {
        return Ok("otlp".to_owned());
    }
    // What others than this program know how to do.
    let is_none = words.all(|word| matches!(word, "none" | "console" | "logging" | "zipkin" | "jaeger"));
    if is_none { Ok("none".to_owned()) } else { Err("must be otlp or none".to_owned()) }
}

/// The address of traces as it is said, else that of everything with their path behind it.
fn endpoint(r: &mut Reader<'_>) -> Option<String> {
    let paths = [["telemetry", "otlp_traces_endpoint"], ["telemetry", "otlp_endpoint"]];
    let [own, base] = paths.map(|path| {
        let text = r.masked(&path, redact_url)?;
        let url = Url::parse(&text).ok().filter(|url| matches!(url.scheme(), "http" | "https") && url.has_host());
        if url.is_none() {
            r.wrong(&path, "must begin with http:// or https://, such as http://localhost:4318");
        }
        let url = url?;
        if !url.username().is_empty() || url.password().is_some() {
            r.wrong(&path, "carries a user name or password; hint: use telemetry.otlp_headers");
        }
        Some(url)
    });
    let base = base.map(|mut url| {
        if let Ok(mut path) = url.path_segments_mut() {
            path.pop_if_empty().extend(crate::telemetry::trace::name::PATH.split('/'));
        }
        url
    });
    own.or(base).map(String::from)
}

/// What is to be said where another protocol is asked for than the one that is spoken. Other programs know more of them, so
/// that in a variable they share it is no error.
fn protocol(r: &mut Reader<'_>) -> Option<Remark> {
    const SPOKEN: &str = "http/json";
    let path = ["telemetry", "otlp_protocol"];
    let said = r.text(&path);
    r.stands_for(&path, SPOKEN);
    let said = said.filter(|word| word.trim() != SPOKEN)?;
    match r.origin(&path) {
        Origin::Env(name) if said.trim() == "http/protobuf" => Some(Remark::Note(format!(
            "{name} asks for http/protobuf, but spans are sent as JSON (http/json): most collectors take both at the same \
             address; hint: set it to http/json if this one does"
        ))),
        Origin::Env(name) => Some(Remark::Warning(format!(
            "{name} asks for a protocol that is not spoken here: spans are sent as JSON over HTTP (http/json); hint: set it \
             to http/json and name the collector's port for HTTP, mostly 4318"
        ))),
        Origin::Default | Origin::File { .. } | Origin::Flag(_) => {
            r.wrong(
                &path,
                "must be http/json: gRPC and protobuf are not spoken; hint: collectors take it on port 4318",
            );
            None
        }
    }
}

fn sampler(r: &mut Reader<'_>) -> Sampler {
    let share = r.float(&["telemetry", "traces_sampler_arg"], 0.0..=1.0, 1.0);
    let usual = "parentbased_always_on";
    let word = r.parsed(&["telemetry", "traces_sampler"], Some(usual.to_owned()), |word| {
        let rest = word.strip_prefix("parentbased_").unwrap_or(word);
        if matches!(rest, "always_on" | "always_off" | "traceidratio") {
            return Ok(word.to_owned());
        }
        Err("must be always_on, always_off or traceidratio, or one of them behind parentbased_".to_owned())
    });
    let word = word.unwrap_or_else(|| usual.to_owned());
    let (by_parent, rest) = word.strip_prefix("parentbased_").map_or((false, word.as_str()), |rest| (true, rest));
    let share = match rest {
        "always_off" => 0.0,
        "traceidratio" => share,
        _ => 1.0,
    };
    Sampler { by_parent, share }
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use super::super::{Sources, resolve};
    use super::*;

    fn told(file: &str, variables: &[(&str, &str)]) -> Result<Option<Traces>, String> {
        let environment = variables.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        let read = |_: &std::path::Path| Err(std::io::ErrorKind::NotFound.into());
        let files = vec![(PathBuf::from("promptq.toml"), file.to_owned())];
        let sources = Sources { files, environment, flags: Vec::new(), folder: PathBuf::from("/"), read: &read };
        resolve(&sources).map(|config| config.telemetry.traces).map_err(|errors| errors.to_string())
    }

    fn endpoint(variables: &[(&str, &str)]) -> Option<String> {
        told("", variables).unwrap().map(|traces| traces.endpoint)
    }

    #[test]
    fn nothing_is_traced_until_a_collector_is_named() {
        const AT: (&str, &str) = ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://c:4318/");
        assert!(told("", &[("OTEL_SERVICE_NAME", "x"), ("OTEL_TRACES_SAMPLER", "always_on")]).unwrap().is_none());
        assert_eq!(endpoint(&[AT]).as_deref(), Some("http://c:4318/v1/traces"));
        assert_eq!(endpoint(&[AT, ("OTEL_SDK_DISABLED", "true")]), None);
        assert_eq!(endpoint(&[AT, ("OTEL_TRACES_EXPORTER", "none")]), None);
        let own = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "https://d/spans");
        assert_eq!(endpoint(&[AT, own]).as_deref(), Some("https://d/spans"), "as it is said");
        let file = "[telemetry]\notlp_endpoint = 'https://in.example/otlp'\nservice_name = 'mine'";
        let traces = told(file, &[]).unwrap().unwrap();
        let service = traces.service.as_deref();
        assert_eq!((traces.endpoint.as_str(), service), ("https://in.example/otlp/v1/traces", Some("mine")));
    }

    #[test]
    fn which_traces_are_kept_is_said_as_everywhere() {
        let sampler = |word: &str, arg: &str| {
            let all = [
                ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://c"),
                ("OTEL_TRACES_SAMPLER", word),
                ("OTEL_TRACES_SAMPLER_ARG", arg),
            ];
            told("", &all).unwrap().unwrap().sampler
        };
        assert_eq!(sampler("", ""), Sampler { by_parent: true, share: 1.0 });
        assert_eq!(sampler("always_off", "0.5"), Sampler { by_parent: false, share: 0.0 });
        assert_eq!(sampler("traceidratio", "0.25"), Sampler { by_parent: false, share: 0.25 });
        assert_eq!(sampler("parentbased_traceidratio", "0.1"), Sampler { by_parent: true, share: 0.1 });
    }

    #[test]
    fn words_that_other_programs_know_are_no_error_of_this_one() {
        let others = [
            ("OTEL_TRACES_SAMPLER", "jaeger_remote"),
            ("OTEL_TRACES_SAMPLER_ARG", "endpoint=http://localhost:14250"),
            ("OTEL_RESOURCE_ATTRIBUTES", "nothing"),
            ("OTEL_EXPORTER_OTLP_HEADERS", "nothing"),
        ];
        assert!(told("", &others).unwrap().is_none());
        let at = ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://c");
        let traces = told("", &[&others[..3], &[at]].concat()).unwrap().unwrap();
        assert_eq!((traces.sampler, traces.resource), (Sampler { by_parent: true, share: 1.0 }, Vec::new()));
        let kept = |word| told("", &[at, ("OTEL_TRACES_EXPORTER", word)]).unwrap().is_some();
        assert_eq!(["otlp,console", "console", "none"].map(kept), [true, false, false]);
        assert!(told("", &[at, ("OTEL_SDK_DISABLED", "TRUE")]).unwrap().is_none());
    }

    #[test]
    fn another_protocol_is_told_of_and_in_a_file_of_ours_an_error() {
        let remark = |variables: &[(&str, &str)]| {
            let at = ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://c:4317");
            told("", &[&[at], variables].concat()).unwrap().unwrap().remark
        };
        let (all, own) = ("OTEL_EXPORTER_OTLP_PROTOCOL", "OTEL_EXPORTER_OTLP_TRACES_PROTOCOL");
        assert_eq!([remark(&[]), remark(&[(all, "http/json")]), remark(&[(all, "")])], [None, None, None]);
        assert_eq!(
            remark(&[(all, "grpc"), (own, "http/json")]),
            None,
            "that of traces counts before that of everything"
        );
        for (name, word, says) in [(all, "grpc", "4318"), (own, "http/protobuf", "as JSON"), (all, "smoke", "4318")] {
            let (text, is_note) = match remark(&[(name, word)]).unwrap() {
                Remark::Note(text) => (text, true),
                Remark::Warning(text) => (text, false),
            };
            assert!(text.contains(name) && text.contains("http/json") && text.contains(says), "{text}");
            assert_eq!(is_note, word == "http/protobuf", "most collectors take JSON there too");
        }
        assert!(told("", &[(all, "grpc")]).unwrap().is_none(), "nothing is sent, so nothing is to be said");
        let file =
            |word: &str| told(&format!("[telemetry]\notlp_protocol = '{word}'\notlp_endpoint = 'http://c'"), &[]);
        assert_eq!(file("http/json").unwrap().unwrap().remark, None);
        let wrong = file("grpc").unwrap_err();
        assert!(wrong.contains("telemetry.otlp_protocol must be http/json"), "{wrong}");
    }

    #[test]
    fn what_cannot_be_used_is_told_without_what_it_says() {
        let at = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "http://c");
        let wrong = |name: &str, value: &str| told("", &[at, (name, value)]).unwrap_err();
        assert!(wrong("OTEL_EXPORTER_OTLP_ENDPOINT", "collector:4317").contains("http://"));
        let secret = wrong("OTEL_EXPORTER_OTLP_ENDPOINT", "https://u:hunter2@c");
        assert!(secret.contains("otlp_headers") && !secret.contains("hunter2"), "{secret}");
        let secret = wrong("OTEL_EXPORTER_OTLP_HEADERS", "hunter2");
        assert!(secret.contains("number 1") && !secret.contains("hunter2"), "{secret}");
        let file = told("[telemetry]\ntraces_sampler = 'jaeger_remote'", &[]).unwrap_err();
        assert!(file.contains("traceidratio"), "{file}");
        let pairs = Traces::pairs("authorization=Basic%20eA==, x-team = a").unwrap();
        assert_eq!(pairs, [("authorization".into(), "Basic eA==".into()), ("x-team".into(), "a".into())]);
    }
}
