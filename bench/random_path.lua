-- Ask for one of many paths at random. The argument names a file that has one path a line.
local requests = {}

function init(args)
  math.randomseed(os.time())
  for path in io.lines(args[1]) do
    requests[#requests + 1] = wrk.format("GET", path)
  end
end

function request()
  return requests[math.random(#requests)]
end
