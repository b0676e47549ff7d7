"""View: a run in a browser, while it goes on or long after, and as one file to send around.

    runs.reading (files of a run) -> figures (what each page shows, as plain objects) -> server  (a page that follows)
                                                                                      -> report  (one HTML file)
    evidence.offline (credit of one line by any method) -> what_if

Invariants: nothing is written into a run; nothing of a response becomes markup, and no page loads anything from
elsewhere; without the token nothing is served.
"""
