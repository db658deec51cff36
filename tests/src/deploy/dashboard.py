# Reads a dashboard as JSON from standard input into Grafana's own model of one, and tells, as a JSON list, the keys that
# were lost on the way back or came back different: what Grafana knows nothing of.
import json
import sys

from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.cog.plugins import register_default_plugins
from grafana_foundation_sdk.models.dashboard import Dashboard

# Grafana's, though not in the model: how annotations read, what a variable's field shows.
UNMODELLED = {"definition", "step", "textFormat", "titleFormat"}


def lost(there, back, path):
    if isinstance(there, dict) and isinstance(back, dict):
        for key, value in there.items():
            if key in back:
                yield from lost(value, back[key], f"{path}.{key}")
            elif key not in UNMODELLED and value not in (None, False, "", [], {}):
                yield f"{path}.{key}"
    elif isinstance(there, list) and isinstance(back, list) and len(there) == len(back):
        for at, (one, other) in enumerate(zip(there, back)):
            yield from lost(one, other, f"{path}[{at}]")
    elif there != back:
        yield path


register_default_plugins()
dashboard = json.load(sys.stdin)
back = json.loads(JSONEncoder().encode(Dashboard.from_json(dashboard)))
json.dump(list(lost(dashboard, back, "")), sys.stdout)
