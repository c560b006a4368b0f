"""
What `gpop report` does: the log's lines into DuckDB, figures out of it, and these as tables or as a page.

Part of a command: executed by an administrator, and by nothing that serves. It refuses to know config and
maildrops; a log is all it has, and what stands in one (names of users, addresses) it takes for hostile.

    inputs     which files, and how they are packed
    store      their lines, as a table of DuckDB in a temporary folder
    columns    the columns of that table, and the classes that sessions are put in
    questions  what is asked of it, in SQL
    figures    the answers as one report, a plain dict: what --json writes
    saved      what the cache has saved; findings  what an administrator should look at
    tables     rows and columns of a report, for the terminal, written (JSON, CSV) and the page
    words      how values are said, and what text from a log may look like
    page       the report as HTML; pictures  its charts; charts  how a chart is drawn
    follow     a log that is being written; live  its view
"""
