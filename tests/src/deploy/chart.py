# Renders the chart in the folder that is its argument, and holds what comes out against Kubernetes' own schemas. Reads
# one question as JSON from standard input and answers it with JSON on standard output:
#   {"yaml": text}                                 what the text says
#   {"lint": values, "broken": template}           what Helm's linter says, with one template more
#   {"cases": [values], "versions": [], "spoil"}   each case rendered, or why not; which objects these versions refuse
import json
import pathlib
import shutil
import sys
import tempfile
import textwrap

import helm_python as helm
import kubernetes_validate
import yaml

PLACE = {"name": "promptq", "namespace": "promptq"}
FOREIGN = ("keda.sh/", "monitoring.coreos.com/")


def lint(folder, values, broken):
    with tempfile.TemporaryDirectory() as place:
        copy = pathlib.Path(place, folder.name)
        shutil.copytree(folder, copy)
        if broken:
            (copy / "templates" / "broken.yaml").write_text(broken)
        report = helm.lint(copy, values, strict=True, kube_version="v1.33.0", **{"namespace": PLACE["namespace"]})
    # An icon is all that it misses.
    return {"messages": [m["error"] for m in report["messages"] if m["severity"] > 1] + report["errors"]}


def render(chart, values):
    merged = chart.merge_values(values)
    try:
        chart.validate_schema(merged)
        files = chart.render(merged, **PLACE)
    except helm.HelmError as error:
        return {"error": str(error)}
    notes = "".join(text for path, text in files.items() if path.endswith("NOTES.txt"))
    files = {path: text for path, text in sorted(files.items()) if path.endswith(".yaml") and text.strip()}
    objects = [found for text in files.values() for found in yaml.safe_load_all(text) if found]
    plain = [text for path, text in files.items() if "/tests/" not in path]
    parts = [part.strip("\n") for text in plain for part in ("\n" + text).split("\n---") if part.strip()]
    rules = next((text.split("\nspec:\n")[1] for path, text in files.items() if path.endswith("/alerts.yaml")), "")
    return {
        "error": None,
        "objects": objects,
        "text": "".join(f"---\n{part}\n" for part in parts),
        "rules": textwrap.dedent(rules).strip("\n") + "\n",
        "notes": notes,
    }


def spoil(objects, how):
    for found in objects:
        if how and (found["kind"], found["metadata"]["name"]) == (how["kind"], how["name"]):
            for key in how["path"][:-1]:
                found = found[key]
            found[how["path"][-1]] = how["value"]


def as_builtin(found):
    """What a schema is at hand for: a ScaledJob's pods are those of a Job."""
    if found["kind"] == "ScaledJob":
        return {"apiVersion": "batch/v1", "kind": "Job", "metadata": found["metadata"], "spec": found["spec"]["jobTargetRef"]}
    return None if found["apiVersion"].startswith(FOREIGN) else found


def refusal(found, version):
    try:
        kubernetes_validate.validate(found, version, strict=True)
    except kubernetes_validate.ValidationError as error:
        return f"{version} {found['kind']} {found['metadata']['name']}: {error.message} at {list(error.path)}"
    return None


def main():
    folder, question = pathlib.Path(sys.argv[1]), json.load(sys.stdin)
    if "yaml" in question:
        return yaml.safe_load(question["yaml"])
    if "lint" in question:
        return lint(folder, question["lint"], question["broken"])
    seen = {}
    with helm.Chart.load(folder) as chart:
        cases = [render(chart, values) for values in question["cases"]]
    for case in cases:
        spoil(case.get("objects", []), question.get("spoil"))
        case["refused"] = []
        for found in filter(None, map(as_builtin, case.get("objects", []))):
            for version in question["versions"]:
                # Most objects are the same in many cases.
                key = version + json.dumps(found, sort_keys=True)
                if key not in seen:
                    seen[key] = refusal(found, version)
                case["refused"] += [seen[key]] if seen[key] else []
    return cases


json.dump(main(), sys.stdout)
