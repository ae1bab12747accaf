"""The commands: one file a group of them, each thin (parse, call, print) and imported only when it is called."""
