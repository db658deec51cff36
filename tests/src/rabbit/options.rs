//! How a test's RabbitMQ is set up: its configuration, its certificates, the environment it is started in.

use std::fs::DirBuilder;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::Path;
use std::process::{Command, Stdio};

use crate::redis::certificates;

/// The harness's own account, so that a test may do to others whatever it likes.
pub(super) const LOGIN: [&str; 2] = ["harness", "for-the-harness-alone"];

/// Ports that a server takes from its own on: AMQP, AMQP with TLS, Erlang's distribution, epmd.
pub(super) const PORTS: u16 = 4;

const KEEPER: &str = include_str!("keeper.sh");
const CONTROL: &str = include_str!("control.erl");
/// What users are asked to set.
const ADVANCED: &str = include_str!("../../../deploy/rabbitmq/advanced.config");

/// A server's settings, with more lines where a test needs them.
#[derive(Clone, Debug, Default)]
pub struct Options {
    lines: Vec<String>,
    pub(super) tls: bool,
}

impl Options {
    /// As servers come, in little memory and on one address, with what is shipped for them.
    pub fn new() -> Self {
        Self::default()
    }

    /// One more line of its configuration (`consumer_timeout = 60000`, `max_message_size = 1000`); a later one wins.
    pub fn with(mut self, line: &str) -> Self {
        self.lines.push(line.to_owned());
        self
    }

    /// Listens with TLS too, under a certificate for `localhost` that `ca.pem` in its folder has signed.
    pub fn tls(mut self) -> Self {
        self.tls = true;
        self
    }

    /// Writes everything that the server reads, and gives the command that runs it.
    pub(super) fn prepare(&self, folder: &Path, port: u16) -> Command {
        let at = |name: &str| folder.join(name);
        DirBuilder::new().recursive(true).mode(0o700).create(folder).expect("a folder of its own");
        write(&at("port"), &port.to_string());
        write(&at("rabbitmq.conf"), &self.config(folder, port));
        write(&at("advanced.config"), ADVANCED);
        write(&at("control.erl"), CONTROL);
        write(&at("keeper.sh"), KEEPER);
        write(&at("enabled_plugins"), "[].\n");
        if self.tls && !at("server.pem").exists() {
            certificates::write(folder);
        }
        let mut command = Command::new("sh");
        command.arg(at("keeper.sh")).arg(folder);
        command
            .env_clear()
            .env("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin")
            .env("LANG", "C.UTF-8")
            .env("HOME", folder)
            .env("ERL_EPMD_PORT", (port + 3).to_string())
            .env("ERL_EPMD_ADDRESS", "127.0.0.1")
            // Runs the virtual machine in the process that was started, whose number is known and can be killed.
            .env("RABBITMQ_ALLOW_INPUT", "1")
            .env("RABBITMQ_NODENAME", format!("pq{port}@localhost"))
            .env("RABBITMQ_DIST_PORT", (port + 2).to_string())
            .env("RABBITMQ_CONF_ENV_FILE", at("none"))
            .env("RABBITMQ_CONFIG_FILE", at("rabbitmq.conf"))
            .env("RABBITMQ_ADVANCED_CONFIG_FILE", at("advanced.config"))
            .env("RABBITMQ_ENABLED_PLUGINS_FILE", at("enabled_plugins"))
            .env("RABBITMQ_MNESIA_BASE", at("data"))
            .env("RABBITMQ_LOG_BASE", folder)
            .env("RABBITMQ_LOGS", at("log"))
            .current_dir(folder)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        command
    }

    fn config(&self, folder: &Path, port: u16) -> String {
        // The memory limit is far above what a test needs; the one for the disk is for small machines.
        let mut text = format!(
            "listeners.tcp.1 = 127.0.0.1:{port}\ndefault_user = {}\ndefault_pass = {}\nloopback_users = none\n\
             log.file.level = info\nlog.console = false\nvm_memory_high_watermark.absolute = 2GiB\n\
             disk_free_limit.absolute = 20MB\nraft.wal_max_size_bytes = 33554432\n",
            LOGIN[0], LOGIN[1]
        );
        if self.tls {
            let at = |name: &str| folder.join(name).display().to_string();
            let lines = [
                format!("listeners.ssl.1 = 127.0.0.1:{}", port + 1),
                format!("ssl_options.cacertfile = {}", at("ca.pem")),
                format!("ssl_options.certfile = {}", at("server.pem")),
                format!("ssl_options.keyfile = {}", at("server.key")),
                "ssl_options.verify = verify_none\nssl_options.fail_if_no_peer_cert = false\n".to_owned(),
            ];
            text.push_str(&lines.join("\n"));
        }
        for line in &self.lines {
            text.push_str(line);
            text.push('\n');
        }
        text
    }
}

fn write(file: &Path, text: &str) {
    std::fs::write(file, text).unwrap_or_else(|error| panic!("{}: {error}", file.display()));
}
