-- sysbench's own oltp_read_write, with connections that come back, saying on stderr which one met which error.
--
-- sysbench can reconnect by itself (--mysql-ignore-errors), but linked with MariaDB's client library, as the
-- distribution's is, it crashes when it does. Here a broken connection is given up and a new one made.

require("oltp_read_write")

local ffi = require("ffi")
ffi.cdef("int usleep(unsigned int microseconds);")

-- Between two attempts to connect.
local RECONNECT_PAUSE_MICROSECONDS = 20000

local transaction = event

local function say(what)
   io.stderr:write(string.format("connection %d %s\n", sysbench.tid, what))
end

local function reconnect()
   pcall(con.disconnect, con)
   while true do
      local made, new_connection = pcall(drv.connect, drv)
      if made then
         con = new_connection
         prepare_statements()
         return
      end
      say("error 0 " .. tostring(new_connection))
      ffi.C.usleep(RECONNECT_PAUSE_MICROSECONDS)
   end
end

function event()
   local done, problem = pcall(transaction)
   if done then
      return
   end
   if type(problem) == "table" then
      -- One of the workload's own conflicts (--mysql-ignore-errors): sysbench begins the transaction again.
      error(problem, 0)
   end
   say("error " .. (string.match(tostring(problem), "errno = (%d+)") or "0 " .. tostring(problem)))
   reconnect()
end
