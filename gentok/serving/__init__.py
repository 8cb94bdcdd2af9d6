"""`gentok serve`: a model that answers over HTTP.

    engine.py    one thread with the model; items of all requests that wait are drawn together
    messages.py  what a request says, checked, and what an answer holds
    app.py       the addresses
    server.py    the command
"""
