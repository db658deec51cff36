//! The program `promptq` in a home of its own: what it says, where, and how it ends.

use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

use promptq_common::broker::{Access, Broker};
use serde_json::Value;
use tempfile::TempDir;

use crate::binary::binary;

/// A home folder with nothing in it, and a broker in it that tests may use beside the programs.
#[derive(Debug)]
pub struct Home {
    folder: TempDir,
}

/// What a program said and how it ended.
#[derive(Debug)]
pub struct Said {
    /// Its exit code; -1 when a signal ended it.
    pub code: i32,
    /// Its data.
    pub stdout: String,
    /// Its talk.
    pub stderr: String,
}

impl Home {
    /// A fresh one.
    pub fn new() -> Self {
        Self { folder: tempfile::tempdir().expect("a folder") }
    }

    /// Below it.
    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// The URL of its broker.
    pub fn url(&self) -> String {
        format!("sqlite://{}", self.path("q.db").display())
    }

    /// Its broker, for this process.
    pub async fn broker(&self) -> Broker {
        Broker::connect(&Access::new(&self.url()).expect("a URL")).await.expect("connects")
    }

    /// Keeps a file.
    pub fn write(&self, name: &str, text: &str) -> PathBuf {
        let path = self.path(name);
        std::fs::write(&path, text).expect("writes");
        path
    }

    /// One of our programs, with this home as its whole environment.
    pub fn program(&self, name: &str, arguments: &[&str]) -> Command {
        let mut command = Command::new(binary(name));
        command.args(arguments).env_clear().current_dir(self.folder.path());
        command.env("HOME", self.folder.path()).env("PATH", "/usr/bin:/bin").env("USER", "tester");
        command.env("PROMPTQ_BROKER", self.url()).stdin(Stdio::null());
        command
    }

    /// Runs `promptq` to its end.
    pub fn promptq(&self, arguments: &[&str]) -> Said {
        Said::of(&mut self.program("promptq", arguments))
    }

    /// Starts `promptq` with both outputs piped.
    pub fn start(&self, arguments: &[&str]) -> Child {
        let mut command = self.program("promptq", arguments);
        command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("starts")
    }
}

impl Default for Home {
    fn default() -> Self {
        Self::new()
    }
}

impl Said {
    /// Runs a program to its end.
    pub fn of(command: &mut Command) -> Self {
        let output = command.output().expect("runs");
        Self {
            code: output.status.code().unwrap_or(-1),
            stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
        }
    }

    /// That it ended so.
    #[track_caller]
    pub fn ends(self, code: i32) -> Self {
        assert_eq!(self.code, code, "stdout: {}\nstderr: {}", self.stdout, self.stderr);
        self
    }

    /// That its talk holds each of these.
    #[track_caller]
    pub fn says(self, parts: &[&str]) -> Self {
        for part in parts {
            assert!(self.stderr.contains(part), "{part:?} is not in stderr: {}", self.stderr);
        }
        self
    }

    /// That its data holds each of these.
    #[track_caller]
    pub fn prints(self, parts: &[&str]) -> Self {
        for part in parts {
            assert!(self.stdout.contains(part), "{part:?} is not in stdout: {}", self.stdout);
        }
        self
    }

    /// Its data as one JSON value.
    #[track_caller]
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.stdout).unwrap_or_else(|error| panic!("{error} in stdout: {}", self.stdout))
    }

    /// The one problem among the lines of its talk.
    #[track_caller]
    pub fn problem(&self) -> Value {
        let lines = self.stderr.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
        let mut problems = lines.filter(|line| line["type"].is_string());
        let problem = problems.next().unwrap_or_else(|| panic!("no problem in stderr: {}", self.stderr));
        assert!(problems.next().is_none(), "two problems in stderr: {}", self.stderr);
        problem
    }

    /// The audit lines of this act: actor, subject, reason and count of each.
    pub fn audits(&self, action: &str) -> Vec<(String, String, String, u64)> {
        let lines = self.stderr.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
        let acts = lines.filter(|line| line["target"] == "promptq::audit" && line["action"] == action);
        let text = |line: &Value, key: &str| line[key].as_str().unwrap_or_default().to_owned();
        acts.map(|line| {
            let count = line["count"].as_u64().unwrap_or_default();
            (text(&line, "actor"), text(&line, "subject"), text(&line, "reason"), count)
        })
        .collect()
    }
}
