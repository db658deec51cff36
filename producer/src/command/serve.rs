//! `promptq serve`: the HTTP gateway, until it is told to leave.

use std::net::SocketAddr;
use std::path::PathBuf;

use promptq_common::config::{self, Flag, Gateway};
use promptq_common::telemetry::admin::Admin;
use promptq_common::telemetry::health::Health;
use promptq_worker::stop::Stop;

use super::exporter::admin_flag;
use crate::context::Context;
use crate::gateway::keyring::Ring;
use crate::gateway::{listen, serve};
use crate::problem::{Exit, Problem, Result};

/// Where and for whom.
#[derive(Debug, clap::Args)]
#[command(
    before_help = "Examples:\n  promptq serve\n  promptq serve --listen 0.0.0.0:8080 --keys /etc/promptq/keys.json",
    after_help = "Off loopback it serves only those who have a key: promptq keys create. Once there is a file of keys, so it does on loopback."
)]
pub struct Args {
    /// Where to listen (127.0.0.1:8080, or all interfaces at the port in `PORT`)
    #[arg(long, value_name = "ADDR")]
    listen: Option<String>,
    /// The file of keys (`$XDG_STATE_HOME/promptq/keys.json`)
    #[arg(long, value_name = "FILE")]
    keys: Option<PathBuf>,
    /// Serves everybody who can reach it, as long as there is no file of keys
    #[arg(long)]
    insecure_no_auth: bool,
    /// Where metrics and probes are served, or off (`PROMPTQ_ADMIN`) [default: 127.0.0.1:9091, while it is free]
    #[arg(long, value_name = "ADDR")]
    admin: Option<String>,
}

impl Args {
    /// The settings among its flags.
    pub fn flags(&self) -> Vec<Flag> {
        let listen = self.listen.clone().map(|value| Flag { setting: "gateway.listen", name: "--listen", value });
        listen.into_iter().chain(keys_flag(self.keys.as_ref())).chain(admin_flag(self.admin.as_ref())).collect()
    }
}

/// `--keys`.
pub(super) fn keys_flag(path: Option<&PathBuf>) -> Option<Flag> {
    let value = path?.to_string_lossy().into_owned();
    Some(Flag { setting: "gateway.keys", name: "--keys", value })
}

/// Serves until SIGTERM or Ctrl-C, and then until what is under way is answered; a second one ends it at once.
pub async fn run(cx: &Context, args: &Args) -> Result<Exit> {
    let gateway = &cx.config.gateway;
    let address = gateway.listen.map_or_else(standard, Ok)?;
    let ring = Ring::open(gateway.keys.clone())?;
    let health = Health::default();
    // Before anything that has numbers; ends last.
    let _admin = Admin::open(cx.config.telemetry.admin, "gateway", &health)?;
    let listener = listen(address, &ring, args.insecure_no_auth).await?;
    let bound = listener.local_addr().map_err(|error| Problem::new(Exit::Failed, "listen", error.to_string()))?;
    let keys = match (ring.is_open(), ring.usable()) {
        (true, _) => "no keys: whoever reaches it may do everything".to_owned(),
        (false, 1) => "1 key".to_owned(),
        (false, keys) => format!("{keys} keys"),
    };
    cx.printer.say(&format!("gateway   http://{bound}   api /v1 · openapi /openapi.json · {keys}"));
    serve(Context::new(cx.config.clone(), cx.printer), listener, (ring, health), Stop::new()).await
}

fn standard() -> Result<SocketAddr> {
    Gateway::standard(config::port().as_deref())
        .map_err(|why| Problem::usage(why).hint("--listen names a place, whatever PORT says"))
}
