"""
What `gpop report` does: the log's lines into DuckDB, figures out of it, and these as tables or as a page.

Part of a command: executed by an administrator, and by nothing that serves. It refuses to know config and
maildrops; a log is all it has, and what stands in one (names of users, addresses) it takes for hostile.

    inputs   which files, and how they are packed     store    lines -> a table of DuckDB
    columns  which fields and classes there are       figures  questions in SQL -> the report, a plain dict
    saved    what the cache has saved                 findings what an administrator should look at
    tables   rows and columns of the report, for      terminal, written (JSON, CSV), page (HTML, with charts)
    follow   a log that is being written              live     its view
"""
