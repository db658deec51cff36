//! Every name that spans have: of themselves, of what they say, and what they may say there. The conventions are
//! `OpenTelemetry`'s for messaging and for generative AI; what those have no word for is below `promptq.`.

/// What is done with a job; the first word of the span's name.
pub mod operation {
    /// A job of several that are put in together is made.
    pub const CREATE: &str = "create";
    /// Jobs are handed to the broker.
    pub const SEND: &str = "send";
    /// A worker takes a job to the end of its lease.
    pub const PROCESS: &str = "process";
    /// What is to become of a job is written down and announced.
    pub const SETTLE: &str = "settle";
}

/// What a call to a provider asks for; the first word of the span's name.
pub mod call {
    /// A conversation goes on.
    pub const CHAT: &str = "chat";
    /// Texts become vectors.
    pub const EMBEDDINGS: &str = "embeddings";
    /// Gemini's word for a conversation.
    pub const GENERATE: &str = "generate_content";
}

/// What a provider is called that the conventions have another name for than we do.
pub const PROVIDERS: [(&str, &str); 1] = [("gemini", "gcp.gemini")];

/// `error.type` of what was stopped and did not fail.
pub const INTERRUPTED: &str = "interrupted";

/// Where the trace service is below the endpoint.
pub const PATH: &str = "v1/traces";

/// Who tells all this.
pub const SCOPE: &str = "promptq";

macro_rules! attributes {
    ($($id:ident = $name:literal, $what:literal;)*) => {
        $(#[doc = $what] pub const $id: &str = $name;)*
        /// Every attribute of a span: none holds a prompt, an answer or a secret.
        pub const ATTRIBUTES: &[&str] = &[$($name),*];
    };
}

attributes! {
    SYSTEM = "messaging.system", "What kind of broker.";
    DESTINATION = "messaging.destination.name", "The queue.";
    OPERATION = "messaging.operation.name", "What is done, in our words.";
    OPERATION_TYPE = "messaging.operation.type", "What is done, in the conventions' words.";
    MESSAGE = "messaging.message.id", "The job's id.";
    CONVERSATION = "messaging.message.conversation_id", "The batch.";
    COUNT = "messaging.batch.message_count", "How many jobs.";
    CLIENT = "messaging.client.id", "The worker.";
    ERROR = "error.type", "The class of a failure.";
    GEN_AI = "gen_ai.operation.name", "What is asked for.";
    PROVIDER = "gen_ai.provider.name", "Who is asked.";
    ASKED_MODEL = "gen_ai.request.model", "The model that was asked.";
    MODEL = "gen_ai.response.model", "The model that answered.";
    REQUEST = "gen_ai.response.id", "The provider's id for the request.";
    FINISH = "gen_ai.response.finish_reasons", "Why it stopped.";
    INPUT = "gen_ai.usage.input_tokens", "Tokens in.";
    CACHED = "gen_ai.usage.cache_read.input_tokens", "Of those, from the provider's cache.";
    OUTPUT = "gen_ai.usage.output_tokens", "Tokens out.";
    STATUS = "http.response.status_code", "HTTP status.";
    ATTEMPT = "promptq.job.attempt", "1 for the first.";
    EPOCH = "promptq.job.epoch", "0, and one more with each redrive.";
    OUTCOME = "promptq.job.outcome", "What became of the delivery.";
    CODE = "promptq.failure.code", "The failure's short name.";
    KEY = "promptq.limit.key", "What shares the call's limits.";
    COST = "promptq.cost.usd", "What the call cost.";
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn attributes_are_named_as_the_conventions_want() {
        let distinct: HashSet<_> = ATTRIBUTES.iter().collect();
        assert_eq!(distinct.len(), ATTRIBUTES.len());
        for name in ATTRIBUTES {
            assert!(name.chars().all(|c| c.is_ascii_lowercase() || matches!(c, '.' | '_')), "{name}");
            let spaces = ["messaging.", "gen_ai.", "http.", "error.", "promptq."];
            assert!(spaces.iter().any(|space| name.starts_with(space)), "{name}");
        }
    }
}
