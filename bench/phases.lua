-- Two kinds of requests in turn on the same connections: a phase of one, a phase of the other, and so on. Arguments: the
-- path of the first kind, the path of the second, and a header of the second as name and value. Prints one line that
-- `bench.load.parse_phases` reads; times are in microseconds.
local ffi = require("ffi")
ffi.cdef [[
  typedef struct { long seconds, nanoseconds; } phases_time;
  int clock_gettime(int clock, phases_time *time);
]]
local MONOTONIC = 1
local PHASE = 600    -- requests: a fraction of a second
local IN_FLIGHT = 64 -- of them are not timed: those before them, of the other kind, may still be under way

local function now()
  local time = ffi.new("phases_time")
  ffi.C.clock_gettime(MONOTONIC, time)
  return tonumber(time.seconds) * 1e6 + tonumber(time.nanoseconds) / 1e3
end

local the_thread
function setup(thread) the_thread = thread end

function init(arguments)
  kinds = { wrk.format("GET", arguments[1]), wrk.format("GET", arguments[2], { [arguments[3]] = arguments[4] }) }
  kind, sent = 1, 0
  timed_1, timed_2, micros_1, micros_2 = 0, 0, 0, 0
end

function request()
  if sent == IN_FLIGHT then
    began = now()
  elseif sent == PHASE then
    local micros = now() - began
    if kind == 1 then
      timed_1, micros_1 = timed_1 + PHASE - IN_FLIGHT, micros_1 + micros
    else
      timed_2, micros_2 = timed_2 + PHASE - IN_FLIGHT, micros_2 + micros
    end
    kind, sent = 3 - kind, 0
  end
  sent = sent + 1
  return kinds[kind]
end

done = function(summary)
  local errors = summary.errors
  io.write(string.format(
    'PHASES {"requests":[%d,%d],"micros":[%d,%d],"status":%d,"errors":%d}\n',
    the_thread:get("timed_1"), the_thread:get("timed_2"), the_thread:get("micros_1"), the_thread:get("micros_2"),
    errors.status, errors.connect + errors.read + errors.write + errors.timeout))
end
