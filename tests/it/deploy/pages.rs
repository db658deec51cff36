//! The pages of `deploy/`: what they tell people to say can be said, and the first request is taken.

use std::path::{Path, PathBuf};
use std::process::Command;

use clap::Parser;
use clap::error::ErrorKind;
use promptq::cli::Cli;
use promptq_tests::gateway::Gateway;
use promptq_tests::process::{Home, Said};

use super::{deploy, read};

const JOB: &str = "019abcde-0123-7abc-8def-0123456789ab";

fn pages(folder: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    let (folders, files): (Vec<_>, Vec<_>) = entries.partition(|path| path.is_dir());
    let here = files.into_iter().filter(|path| path.extension().is_some_and(|kind| kind == "md"));
    here.chain(folders.iter().flat_map(|folder| pages(folder))).collect()
}

/// The commands of a page, each as promptq's own words and whether it is all there: those of its examples, and those in its
/// sentences that have something to fill in or a flag; the others may only name a command.
fn commands(page: &str) -> Vec<(String, bool)> {
    let of_gateway = |line: &str| {
        let (_, words) = line.strip_prefix("docker compose run ")?.split_once(" gateway ")?;
        Some(format!("promptq {words}"))
    };
    let own = |line: &str| line.starts_with("promptq ").then(|| line.to_owned());
    let (mut examples, mut sentences) = (Vec::new(), String::new());
    for (n, part) in page.split("```").enumerate() {
        if n % 2 == 1 {
            let lines = part.lines().map(|line| line.split(" #").next().unwrap().split(" | ").next().unwrap().trim());
            examples.extend(lines.filter_map(|line| of_gateway(line).or_else(|| own(line))).map(|line| (line, true)));
        } else {
            sentences += &part.replace('\n', " ");
        }
    }
    assert_eq!(sentences.matches('`').count() % 2, 0, "code that begins and does not end: {page}");
    let is_blank = |word: &str| word.len() > 1 && word.chars().all(|letter| letter.is_ascii_uppercase());
    let is_whole = |word: &str| is_blank(word) || word.starts_with(['-', '<']);
    let told = sentences.split('`').skip(1).step_by(2).filter_map(own);
    let told = told.map(|code| (code.clone(), code.split(' ').any(is_whole)));
    examples.into_iter().chain(told).collect()
}

fn say(command: &str, is_whole: bool) -> Result<(), String> {
    let words = shlex::split(command).ok_or("it does not end")?;
    let fill = |word: &String| match word.as_str() {
        "ID" | "JOB_ID" => JOB.to_owned(),
        "<queue>" => "default".to_owned(),
        "…" => "jobs.csv".to_owned(),
        _ => word.clone(),
    };
    let words: Vec<String> = words.iter().map(fill).collect();
    match Cli::try_parse_from(&words) {
        Err(error) if is_whole || !is_cut_short(error.kind()) => return Err(error.to_string()),
        _ => {}
    }
    if let Some(at) = words.iter().position(|word| word == "--where") {
        promptq::filter::parse(&words[at + 1]).map_err(|error| format!("{error:?}"))?;
    }
    Ok(())
}

fn is_cut_short(kind: ErrorKind) -> bool {
    matches!(
        kind,
        ErrorKind::MissingRequiredArgument
            | ErrorKind::MissingSubcommand
            | ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand
    )
}

#[test]
fn every_command_of_the_pages_can_be_said() {
    let mut said = 0;
    for page in pages(&deploy("")) {
        for (command, is_whole) in commands(&read(&page)) {
            if let Err(why) = say(&command, is_whole) {
                panic!("{}: {command}\n{why}", page.display());
            }
            said += 1;
        }
    }
    assert!(said > 50, "{said}");
    let told = |page: &str| commands(page).iter().map(|(command, is_whole)| say(command, *is_whole).is_ok()).collect();
    let told: Vec<bool> =
        told("`promptq keys create NAME`, `promptq\njobs why`\n```\npromptq keys create me # so\n```\n");
    assert_eq!(told, [false, false, true], "the example, what is to be filled in, the name of a command");
}

#[tokio::test]
async fn the_first_request_that_the_page_of_compose_shows_is_taken() {
    let page = read(&deploy("compose/README.md"));
    let line = page.lines().find(|line| line.starts_with("curl ")).unwrap();
    let home = Home::new();
    let create = commands(&page).into_iter().find(|(command, _)| command.contains("keys create")).unwrap().0;
    let words = shlex::split(&create).unwrap();
    let words: Vec<&str> = words.iter().skip(1).map(String::as_str).collect();
    let secret = home.promptq(&words).ends(0).stdout;
    let gateway = Gateway::start(&home, &[]).await.ready().await;
    let line = line.replace("127.0.0.1:8080", &gateway.address.to_string());
    let line = line.replace("Bearer …", &format!("Bearer {}", secret.trim()));
    let said = tokio::task::spawn_blocking(move || Said::of(Command::new("bash").args(["-c", &format!("{line} -s")])));
    let answer = said.await.unwrap().ends(0).json();
    assert_eq!((&answer["state"], &answer["notes"]), (&"queued".into(), &serde_json::json!([])), "{answer}");
}
