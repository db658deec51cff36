//! The image: its Dockerfile linted, and its last stage built and looked into without an engine, over a base that a test
//! makes. The stage that compiles is replaced by a folder of programs.

use std::path::{Path, PathBuf};
use std::process::Command;

use promptq_tests::binary::binary;
use promptq_tests::process::Said;
use serde_json::Value;
use tempfile::TempDir;

use super::shipped::{as_said, finds, passes_and_finds, shipped, text, tool, top};

/// Where buildah keeps images and containers of one test.
struct Images {
    folder: TempDir,
}

impl Images {
    fn new() -> Self {
        Self { folder: TempDir::new().unwrap() }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn buildah(&self, words: &[&str]) -> Command {
        let mut command = Command::new("buildah");
        command.arg("--root").arg(self.path("root")).arg("--runroot").arg(self.path("run"));
        command.args(["--storage-driver", "vfs"]).args(words).env("BUILDAH_ISOLATION", "chroot");
        command
    }

    fn says(&self, words: &[&str]) -> String {
        Said::of(&mut self.buildah(words)).ends(0).stdout.trim().to_owned()
    }

    /// Builds the last stage over a base, with these programs where the build stage leaves its own.
    fn build(&self, dockerfile: &Path, base: &str, programs: [&Path; 2]) -> Said {
        let out = self.path("build/out");
        std::fs::create_dir_all(out.join("bin")).unwrap();
        std::fs::create_dir_all(out.join("state")).unwrap();
        for (program, name) in programs.iter().zip(["promptq", "promptq-worker"]) {
            std::fs::copy(program, out.join("bin").join(name)).unwrap();
        }
        let mut command = self.buildah(&["bud", "--isolation", "chroot", "--format", "docker", "--target", "runtime"]);
        command.arg("--build-context").arg(format!("build={}", self.path("build").display()));
        command.args(["--build-arg", &format!("RUNTIME_BASE={base}"), "--build-arg", "VERSION=1.2.3"]);
        command.args(["--build-arg", "REVISION=abc", "--tag", "promptq", "--file"]).arg(dockerfile);
        Said::of(command.arg(self.folder.path()))
    }

    fn configuration(&self) -> Value {
        let text = self.says(&["inspect", "--type", "image", "promptq"]);
        serde_json::from_str::<Value>(&text).unwrap()["Docker"]["config"].take()
    }
}

impl Drop for Images {
    fn drop(&mut self) {
        // Its folders are other users'.
        drop(self.buildah(&["rmi", "--all", "--force"]).output());
    }
}

/// What is wrong with an image's configuration.
fn unwanted(config: &Value) -> Vec<String> {
    let list = |value: &Value| -> Vec<String> {
        value.as_array().into_iter().flatten().filter_map(|one| one.as_str().map(str::to_owned)).collect()
    };
    let labels = ["title", "description", "licenses", "version", "revision", "created", "source"];
    let label = |name: &str| config["Labels"][format!("org.opencontainers.image.{name}")].as_str();
    let wanted = [
        (config["User"] == "65532:65532", "its user is no number"),
        (
            list(&config["Healthcheck"]["Test"]) == ["CMD", WORKER, "healthcheck", "livez"],
            "its health check is another",
        ),
        (list(&config["Entrypoint"]) == [WORKER], "it starts something else"),
        (config["StopSignal"] == "SIGTERM", "it is stopped by another signal"),
        (config["Volumes"]["/var/lib/promptq"].is_object(), "its data go with its container"),
        (config["WorkingDir"] == "/var/lib/promptq", "it begins in another folder"),
        (list(&config["Env"]).contains(&"XDG_STATE_HOME=/var/lib".to_owned()), "its file is elsewhere"),
        (labels.iter().all(|name| label(name).is_some_and(|text| !text.is_empty())), "a label is missing"),
        ((label("version"), label("revision")) == (Some("1.2.3"), Some("abc")), "its labels say another version"),
    ];
    wanted.into_iter().filter(|(holds, _)| !holds).map(|(_, what)| what.to_owned()).collect()
}

const WORKER: &str = "/usr/local/bin/promptq-worker";

#[test]
fn the_dockerfile_passes_hadolint() {
    let lint = |path: &Path| Said::of(tool("hadolint").args(["--no-color", "--failure-threshold", "info"]).arg(path));
    passes_and_finds(
        "Dockerfile",
        &[
            ("USER 65532:65532", "USER root", "DL3002"),
            ("WORKDIR /src", "WORKDIR src", "DL3000"),
            ("ENTRYPOINT [\"/usr/local/bin/promptq-worker\"]", "ENTRYPOINT promptq-worker", "DL3025"),
            ("FROM ${RUNTIME_BASE} AS runtime", "FROM debian AS runtime", "DL3006"),
            ("HEALTHCHECK", "HEALTHCHEK", "unexpected"),
        ],
        lint,
    );
}

#[test]
fn the_last_stage_is_as_platforms_want_it() {
    let images = Images::new();
    let stub = images.path("stub");
    std::fs::write(&stub, "a program").unwrap();
    let look = |dockerfile: &Path| {
        let built = images.build(dockerfile, "scratch", [&stub, &stub]);
        if built.code == 0 { as_said(&unwanted(&images.configuration())) } else { built }
    };
    look(&shipped("Dockerfile")).ends(0);
    let seeds = [
        ("USER 65532:65532", "USER nonroot", "its user is no number"),
        ("STOPSIGNAL SIGTERM", "STOPSIGNAL SIGINT", "another signal"),
        ("\"healthcheck\", ", "", "its health check is another"),
        ("image.revision=\"${REVISION}\"", "image.revision=\"\"", "a label is missing"),
        ("COPY --from=build /out/bin/", "COPY --from=build /out/programs/", "programs"),
    ];
    finds(&text("Dockerfile"), "Dockerfile", &seeds, look);
}

#[test]
fn the_programs_run_as_that_user_on_no_more_than_libc() {
    let images = Images::new();
    let slim = ["promptq", "promptq-worker"].map(|name| {
        let slim = images.path(name);
        Said::of(Command::new("strip").args(["--strip-all", "-o"]).arg(&slim).arg(binary(name))).ends(0);
        slim
    });
    // What a base like distroless has: the C library, the loader and libgcc.
    let container = images.says(&["from", "scratch"]);
    let needed = Said::of(Command::new("ldd").arg(&slim[0])).ends(0).stdout;
    let libraries: Vec<_> = needed.split_whitespace().filter(|word| word.starts_with('/')).collect();
    for library in &libraries {
        let name = Path::new(library).file_name().unwrap().to_str().unwrap();
        let known = ["libc.so.6", "libm.so.6", "libgcc_s.so.1", "ld-linux-x86-64.so.2", "ld-linux-aarch64.so.1"];
        assert!(known.contains(&name), "{name} is in no such base: {needed}");
        images.says(&["copy", &container, library, library]);
    }
    images.says(&["commit", "--rm", &container, "localhost/base"]);
    images.build(&shipped("Dockerfile"), "localhost/base", [&slim[0], &slim[1]]).ends(0);
    let container = images.says(&["from", "localhost/promptq"]);
    let run = |words: &[&str]| {
        let mut command = images.buildah(&["run", "--isolation", "chroot", &container, "--"]);
        Said::of(command.args(words))
    };
    run(&[WORKER, "--version"]).ends(0).prints(&["promptq-worker "]);
    // Its folder is its own: the embedded file is made there, and is there afterwards.
    run(&[WORKER, "--once"]).ends(0);
    run(&["/usr/local/bin/promptq", "queues", "list"]).ends(0);
    let found = Said::of(Command::new("find").arg(images.path("root")).args(["-name", "default.db", "-uid", "65532"]));
    assert_eq!(found.stdout.lines().count(), 1, "the file is that user's");
}

#[test]
fn what_the_build_copies_is_there_and_named_to_cargo() {
    let ignore = text("Dockerfile.dockerignore");
    let wanted: Vec<_> = ignore.lines().filter_map(|line| line.strip_prefix('!')).collect();
    let gone: Vec<_> = wanted.iter().filter(|name| !top().join(name).exists()).collect();
    assert_eq!(gone, Vec::<&&str>::new());
    let manifest: toml::Table = std::fs::read_to_string(top().join("Cargo.toml")).unwrap().parse().unwrap();
    for member in manifest["workspace"]["members"].as_array().unwrap() {
        assert!(wanted.contains(&member.as_str().unwrap()), "{member} is not sent to the build");
    }
    assert!(
        manifest["profile"]["dist"].is_table() && text("Dockerfile").contains("cargo build --profile dist --locked")
    );
}
