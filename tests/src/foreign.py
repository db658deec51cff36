# A foreign client as its author would write it, from deploy/redis/FOREIGN.md alone: pushes the lines of its standard
# input, then prints the results of the stream until there are as many as it was told, or nothing comes for a while.
import json
import sys

import redis

url, queue, wanted = sys.argv[1], sys.argv[2], int(sys.argv[3])
server = redis.Redis.from_url(url)
for line in sys.stdin.buffer.read().splitlines():
    server.rpush("{pq:%s}:inbox" % queue, line)
server.rpush("{pq:%s}:wake" % queue, 1)

seen, place = 0, "0"
while seen < wanted:
    found = server.xread({"{pq:%s}:results" % queue: place}, block=15_000)
    if not found:
        sys.exit("no result came within 15 s; had %d" % seen)
    for place, entry in found[0][1]:
        print(json.dumps(json.loads(entry[b"result"])), flush=True)
        seen += 1
