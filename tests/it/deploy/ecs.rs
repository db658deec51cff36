//! The template for ECS: linted, and asked what the linter does not ask.

use std::path::Path;

use promptq_tests::process::Said;

use super::shipped::{passes_and_finds, script, tool};

const TEMPLATE: &str = "ecs/promptq.yaml";

#[test]
fn the_template_is_one_that_cloudformation_takes() {
    let lint = |path: &Path| Said::of(tool("cfn-lint").args(["-r", "us-east-1", "--"]).arg(path));
    passes_and_finds(
        TEMPLATE,
        &[
            ("ReadonlyRootFilesystem: true", "ReadOnlyRootFilesystem: true", "ReadOnlyRootFilesystem"),
            ("Cpu: \"512\"\n      Memory: \"1024\"", "Cpu: \"512\"\n      Memory: \"512\"", "512"),
            ("TaskDefinition: !Ref WorkerTask", "TaskDefinition: !Ref WorkersTask", "WorkersTask"),
            ("ComparisonOperator: GreaterThanThreshold", "ComparisonOperator: More", "More"),
        ],
        lint,
    );
}

#[test]
fn the_template_says_what_the_linter_does_not_ask() {
    let ask = |path: &Path| Said::of(script("ecs.py").arg(path));
    passes_and_finds(
        TEMPLATE,
        &[
            ("StopTimeout: 120", "StopTimeout: 500", "worker: StopTimeout is 500"),
            ("Value: 105s", "Value: 118s", "worker: drains for 118s"),
            ("User: \"65532:65532\"", "User: nonroot", "worker: User is no number"),
            ("ReadonlyRootFilesystem: true", "ReadonlyRootFilesystem: false", "worker: its file system"),
            ("InitProcessEnabled: true", "InitProcessEnabled: false", "worker: nobody reaps"),
            ("Command: [CMD, /usr", "Command: [CMD-SHELL, /usr", "worker: the health check wants a shell"),
            ("healthcheck, livez]", "healthcheck, readyz]", "worker: the health check asks for more"),
            ("Name: PROMPTQ_STORE,", "Name: OPENAI_API_KEY,", "OPENAI_API_KEY is a secret"),
            ("Value: enabled", "Value: disabled", "nobody counts running tasks"),
            ("EnableExecuteCommand: false", "EnableExecuteCommand: true", "people may run commands"),
            ("Rollback: true", "Rollback: false", "is not rolled back"),
            ("MinimumHealthyPercent: 100", "MinimumHealthyPercent: 50", "stops tasks first"),
            ("LaunchType: FARGATE", "LaunchType: FARGATE\n      DesiredCount: 2", "takes back what scaling decided"),
            (", ecs:UpdateTaskProtection]", "]", "may not protect its task"),
            ("Default: 1\n    MinValue: 1", "Default: 1\n    MinValue: 0", "nothing comes back from no task"),
            ("ScaleInCooldown: 300", "ScaleInCooldown: 30", "scales in within 30 s"),
            ("ScaleOutCooldown: 60", "ScaleOutCooldown: 600", "scales out after 600 s"),
            ("(ready + running) / IF", "ready / IF", "busy workers look idle"),
            ("(ready + running)", "(FILL(ready, 0) + running)", "a silent exporter looks like an empty queue"),
            ("IF(FILL(tasks, 0) > 0, FILL(tasks, 0), 1)", "tasks", "divides by no tasks"),
            ("TreatMissingData: breaching", "TreatMissingData: notBreaching", "is quiet when nobody looks"),
            ("[[\"queue\", \"state\"]]", "[[\"queue\"]]", "is published by nobody"),
            ("MetricName: promptq_queue_messages", "MetricName: promptq_queue_depth", "promptq_queue_depth by"),
            ("\"^promptq$\"", "\"^prompts$\"", "^prompts$ is no job"),
            ("LinuxParameters:", "LinuxParameters: &init", "knows no anchors"),
        ],
        ask,
    );
}
