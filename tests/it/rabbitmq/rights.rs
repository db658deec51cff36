//! What the users of `deploy/rabbitmq/definitions.json` may do, and everything else that they may not.
