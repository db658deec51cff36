# Reads the documents of deploy/cloudrun, filled in, as the Cloud Run API's own models do, which know every field there
# is, and looks at what the models do not. Prints a line for each fault, and ends with 1 if there is one.
import json
import re
import sys

from google.cloud import run_v2
from google.protobuf import json_format

MODELS = {"service": run_v2.Service, "worker-pool": run_v2.WorkerPool, "job": run_v2.Job}
# Between SIGTERM and SIGKILL, everywhere.
GRACE = 10
# What handing back the rest may take.
HAND_BACK = 4
faults = []


def demand(holds, what):
    if not holds:
        faults.append(what)


def seconds(text):
    found = re.fullmatch(r"(\d+)s", text or "")
    return int(found[1]) if found else GRACE


def main(kind, path):
    with open(path) as text:
        document = json.load(text)
    demand("${" not in json.dumps(document), "a variable was not filled in")
    try:
        json_format.ParseDict(document, MODELS[kind].pb(MODELS[kind]()))
    except json_format.ParseError as error:
        faults.append(str(error))
        return
    template = document["template"]["template"] if kind == "job" else document["template"]
    demand(template.get("serviceAccount"), "runs as the project's own account, which may do everything")
    for container in template["containers"]:
        given = {one["name"]: one for one in container.get("env", [])}
        for name, one in given.items():
            if re.search(r"(PASSWORD|SECRET|TOKEN|_KEY)$", name):
                demand("valueSource" in one, "%s is a secret, and in the document" % name)
        broker = given.get("PROMPTQ_BROKER", {}).get("value", "")
        demand(broker and not broker.startswith("sqlite"), "its broker is %r, which goes with the instance" % broker)
        drain = given.get("PROMPTQ__GATEWAY__DRAIN_TIMEOUT" if kind == "service" else "PROMPTQ__WORKER__DRAIN_TIMEOUT", {}).get("value")
        room = 0 if kind == "service" else HAND_BACK
        demand(seconds(drain) + room < GRACE, "drains for %s, and is killed after %d s" % (drain, GRACE))
        probes = {name: container.get(name, {}).get("httpGet", {}).get("path") for name in ("startupProbe", "livenessProbe")}
        if kind != "job":
            demand(probes == {"startupProbe": "/startupz", "livenessProbe": "/livez"}, "its probes are %s" % probes)
            startup = container.get("startupProbe", {})
            demand(startup.get("periodSeconds", 10) * startup.get("failureThreshold", 3) <= 240, "its start may take longer than the 240 s there are")
        if kind == "service":
            demand(container["resources"].get("cpuIdle", True) is False, "its processor stops between requests, and the broker hears nothing")
            demand(template.get("scaling", {}).get("minInstanceCount", 0) >= 1, "there may be none of it")
        if kind == "job":
            demand("--exit-when-idle" in container.get("args", []), "never ends")
    if kind == "job":
        demand(template.get("maxRetries") == 0, "is started again by Cloud Run, and its jobs by the queue")


main(sys.argv[1], sys.argv[2])
for fault in faults:
    print(fault)
sys.exit(1 if faults else 0)
