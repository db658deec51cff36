# What cfn-lint does not look at in deploy/ecs/promptq.yaml: stop times, shutdown, protection, scaling, secrets.
# Prints a line for each fault, and ends with 1 if there is one.
import json
import re
import sys

import yaml


class Loader(yaml.SafeLoader):
    """YAML as CloudFormation reads it: short forms become their long ones; anchors are none of its own."""

    def compose_node(self, parent, index):
        event = self.peek_event()
        if isinstance(event, yaml.AliasEvent) or getattr(event, "anchor", None):
            faults.append("line %d: CloudFormation knows no anchors and aliases" % (event.start_mark.line + 1))
        return super().compose_node(parent, index)


def short(loader, suffix, node):
    if isinstance(node, yaml.ScalarNode):
        value = loader.construct_scalar(node)
        if suffix == "GetAtt":
            value = value.split(".", 1)
    elif isinstance(node, yaml.SequenceNode):
        value = loader.construct_sequence(node, deep=True)
    else:
        value = loader.construct_mapping(node, deep=True)
    return {suffix if suffix in ("Ref", "Condition") else "Fn::" + suffix: value}


Loader.add_multi_constructor("!", short)
faults = []


def demand(holds, what):
    if not holds:
        faults.append(what)


def seconds(text):
    found = re.fullmatch(r"(\d+)(s|m)", str(text))
    return int(found[1]) * (60 if found[2] == "m" else 1) if found else -1


def container(name, task, role):
    own = name in ("worker", "gateway", "exporter")
    stop = task.get("StopTimeout")
    demand(isinstance(stop, int) and stop <= 120, "%s: StopTimeout is %s, Fargate gives 120 s at most" % (name, stop))
    given = {one["Name"]: one["Value"] for one in task.get("Environment", []) if "Name" in one}
    for variable in given:
        secret = re.search(r"(PASSWORD|SECRET|TOKEN|_KEY)$", variable)
        demand(not secret, "%s: %s is a secret, and not under Secrets" % (name, variable))
    if not own:
        return
    demand(re.fullmatch(r"[1-9]\d*:[1-9]\d*", str(task.get("User"))), "%s: User is no number" % name)
    demand(task.get("ReadonlyRootFilesystem") is True, "%s: its file system may be written" % name)
    demand(task.get("LinuxParameters", {}).get("InitProcessEnabled") is True, "%s: nobody reaps its children" % name)
    check = task.get("HealthCheck", {}).get("Command", [])
    demand(check[:1] == ["CMD"] and "healthcheck" in check, "%s: the health check wants a shell, which is not there" % name)
    # A broker that is away would have every task replaced.
    demand(check[-1:] == ["livez"], "%s: the health check asks for more than life" % name)
    drain = given.get("PROMPTQ__WORKER__DRAIN_TIMEOUT" if name == "worker" else "PROMPTQ__GATEWAY__DRAIN_TIMEOUT")
    if name != "exporter":
        left = (stop or 0) - seconds(drain)
        demand(seconds(drain) > 0 and left >= 10, "%s: drains for %s of %s s, and has no time left" % (name, drain, stop))


def published(agent):
    """What the agent makes of the exporter's figures: names and the dimensions of each."""
    given = {one["Name"]: one["Value"] for one in agent["Environment"]}
    scrape = yaml.safe_load(given["PROMETHEUS_CONFIG_CONTENT"])
    told = json.loads(given["CW_CONFIG_CONTENT"]["Fn::Sub"])["logs"]["metrics_collected"]["prometheus"]["emf_processor"]
    jobs = {one["job_name"] for one in scrape["scrape_configs"]}
    found = []
    for one in told["metric_declaration"]:
        demand(any(re.search(one["label_matcher"], job) for job in jobs), "metrics: %s is no job of the agent" % one["label_matcher"])
        found += [(selector, set(names)) for selector in one["metric_selectors"] for names in one["dimensions"]]
    return told["metric_namespace"], found


def asked(value):
    """Every figure that something in the template asks CloudWatch for."""
    if isinstance(value, dict):
        if "MetricName" in value:
            yield value
        for one in value.values():
            yield from asked(one)
    elif isinstance(value, list):
        for one in value:
            yield from asked(one)


def main(path):
    with open(path) as text:
        template = yaml.load(text, Loader)
    resources = template["Resources"]
    kinds = {}
    for name, resource in resources.items():
        kinds.setdefault(resource["Type"], {})[name] = resource.get("Properties", {})

    for name, task in kinds["AWS::ECS::TaskDefinition"].items():
        for one in task["ContainerDefinitions"]:
            container(one["Name"], one, task.get("TaskRoleArn"))

    for name, cluster in kinds["AWS::ECS::Cluster"].items():
        on = {"Name": "containerInsights", "Value": "enabled"} in cluster.get("ClusterSettings", [])
        demand(on, "%s: without Container Insights nobody counts running tasks" % name)

    for name, service in kinds["AWS::ECS::Service"].items():
        demand(service.get("EnableExecuteCommand") is False, "%s: people may run commands in it" % name)
        deployment = service.get("DeploymentConfiguration", {})
        breaker = deployment.get("DeploymentCircuitBreaker", {})
        demand(breaker == {"Enable": True, "Rollback": True}, "%s: a bad deployment is not rolled back" % name)
        if name != "ExporterService":
            demand(deployment.get("MinimumHealthyPercent") == 100, "%s: a deployment stops tasks first" % name)
    demand("DesiredCount" not in resources["WorkerService"]["Properties"], "WorkerService: an update takes back what scaling decided")

    actions = set()
    for policy in resources["WorkerRole"]["Properties"]["Policies"]:
        for statement in policy.get("PolicyDocument", {}).get("Statement", []):
            action = statement["Action"]
            actions.update([action] if isinstance(action, str) else action)
            demand(statement["Resource"] != "*", "WorkerRole: %s of everything" % action)
    demand({"ecs:GetTaskProtection", "ecs:UpdateTaskProtection"} <= actions, "WorkerRole: a worker may not protect its task")

    target = resources["WorkerScaling"]["Properties"]
    demand(template["Parameters"][target["MinCapacity"]["Ref"]].get("MinValue", 0) >= 1, "WorkerScaling: nothing comes back from no task")
    scaling = resources["BacklogPerTaskPolicy"]["Properties"]["TargetTrackingScalingPolicyConfiguration"]
    demand("PredefinedMetricSpecification" not in scaling, "BacklogPerTaskPolicy: workers wait, so their processors say nothing")
    demand(scaling["ScaleInCooldown"] >= 300, "BacklogPerTaskPolicy: scales in within %s s" % scaling["ScaleInCooldown"])
    demand(scaling["ScaleOutCooldown"] <= 60, "BacklogPerTaskPolicy: scales out after %s s only" % scaling["ScaleOutCooldown"])
    figures = {one["Id"]: one for one in scaling["CustomizedMetricSpecification"]["Metrics"]}
    returned = [one for one in figures.values() if one.get("ReturnData")]
    demand(len(returned) == 1, "BacklogPerTaskPolicy: %d figures are returned" % len(returned))
    expression = re.sub(r"\s", "", returned[0].get("Expression", "")) if returned else ""
    demand("IF(FILL(tasks,0)>0,FILL(tasks,0),1)" in expression, "BacklogPerTaskPolicy: divides by no tasks")
    backlog = expression.split("/")[0]
    demand("running" in backlog, "BacklogPerTaskPolicy: leaves out what runs, so busy workers look idle")
    demand("FILL" not in backlog, "BacklogPerTaskPolicy: a silent exporter looks like an empty queue")

    agent = [one for one in resources["ExporterTask"]["Properties"]["ContainerDefinitions"] if one["Name"] == "metrics"][0]
    namespace, figures = published(agent)
    for figure in asked(resources):
        name, dimensions = figure["MetricName"], {one["Name"] for one in figure["Dimensions"]}
        if figure["Namespace"] == "ECS/ContainerInsights":
            continue
        fits = any(re.search(selector, name) and dimensions == names for selector, names in figures)
        demand(figure["Namespace"] == namespace and fits, "%s by %s is published by nobody" % (name, sorted(dimensions)))

    alarms = kinds.get("AWS::CloudWatch::Alarm", {})
    demand(len(alarms) >= 4, "there are %d alarms" % len(alarms))
    for name, alarm in alarms.items():
        demand(alarm.get("TreatMissingData") == "breaching", "%s: is quiet when nobody looks" % name)
        demand(alarm.get("AlarmActions"), "%s: tells nobody" % name)


main(sys.argv[1])
for fault in faults:
    print(fault)
sys.exit(1 if faults else 0)
