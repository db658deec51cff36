//! The process `promptq`: arguments in, exit code out.

use std::process::ExitCode;

fn main() -> ExitCode {
    promptq::main()
}
