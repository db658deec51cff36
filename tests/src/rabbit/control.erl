%% Lets the harness evaluate expressions inside a RabbitMQ of the tests, over a socket file in its private folder: a
%% millisecond each, where a command line tool takes a second. One request is a length of four bytes and the text.
spawn(fun() ->
  Path = filename:join(os:getenv("HOME"), "control"),
  file:delete(Path),
  {ok, Listening} = gen_tcp:listen(0, [{ifaddr, {local, Path}}, {packet, 4}, {active, false}, binary, {backlog, 128}]),
  Evaluate = fun(Text) ->
    try
      {ok, Tokens, _} = erl_scan:string(unicode:characters_to_list(Text)),
      {ok, Expressions} = erl_parse:parse_exprs(Tokens),
      case erl_eval:exprs(Expressions, []) of
        {value, {text, Value}, _} -> ["ok ", Value];
        {value, Value, _} -> io_lib:format("ok ~0tp", [Value])
      end
    catch Class:Reason -> io_lib:format("no ~0tp", [{Class, Reason}])
    end
  end,
  Serve = fun(Socket) ->
    (fun Next() ->
      case gen_tcp:recv(Socket, 0) of
        {ok, Text} ->
          gen_tcp:send(Socket, unicode:characters_to_binary(Evaluate(Text))),
          Next();
        {error, _} ->
          gen_tcp:close(Socket)
      end
    end)()
  end,
  (fun Accept() ->
    {ok, Socket} = gen_tcp:accept(Listening),
    Server = spawn(fun() -> receive go -> Serve(Socket) end end),
    gen_tcp:controlling_process(Socket, Server),
    Server ! go,
    Accept()
  end)()
end).
