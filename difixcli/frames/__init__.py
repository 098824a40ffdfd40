"""One pipeline that carries frames through read, align, fix, check and write; `fix`, `enhance` and `distill` use it."""
