-- hello: the handshake's script, run by EVAL once per connection before the batch script is loaded (protocol,
-- section 2). ARGV[1] is the run_id that INFO gave on this same connection.
-- Returns MessagePack [format, cluster, N, index, memory] of the node record as it is now. Where the record is of another
-- cluster, size, index or format it touches nothing. A run_id that is not the record's, or no record at all (a new
-- server, or FLUSHALL), means that the memory may have gaps: it becomes none, and the old id is kept aside for recovery.
-- A record without a memory, now or kept aside, on a server that has promised nothing about a member list yet, binds
-- nobody: it was left by a daemon that founded nothing, perhaps with a wrong configuration, and is written anew.
-- A join that was under way is over with the run that it began in; what a recovery had merged into is still what was kept.
-- A repeat changes nothing.
local NODE_KEY = 'majorityd:node'
local run_id = ARGV[1]

local raw = redis.call('GET', NODE_KEY)
local node = raw and cmsgpack.unpack(raw)
if node and node[6] == '' and node[7] == '' and not redis.call('GET', 'majorityd:r:m:') then
  node = nil
end
if node then
  if node[1] == FORMAT and node[2] == CLUSTER and node[3] == NODES and node[4] == INDEX and node[5] ~= run_id then
    if node[6] ~= '' and node[9] == 0 then
      node[7] = node[6]
    end
    node[5], node[6], node[9], node[11] = run_id, '', 0, false
    redis.call('SET', NODE_KEY, cmsgpack.pack(node))
  end
else
  node = { FORMAT, CLUSTER, NODES, INDEX, run_id, '', '', '', 0, '0', false, 0, 0 }
  redis.call('SET', NODE_KEY, cmsgpack.pack(node))
end
return cmsgpack.pack({ node[1], node[2], node[3], node[4], node[6] })
