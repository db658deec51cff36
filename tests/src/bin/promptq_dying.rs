//! `promptq` with crash points: the same program, which dies where `FAILPOINTS` says.

fn main() -> std::process::ExitCode {
    promptq::main()
}
