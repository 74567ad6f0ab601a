"""Answer texts of many tasks over HTTP, all with one frozen model: a queue and a web server around `inference.predict`.

`shelf` holds the prompts, `batcher` runs the model, `service` answers rows, `gate` refuses what is not to be answered,
`app` and `routes` are HTTP. Only `app`, `routes`, `metrics` and `run` need the extra ``serve``.
"""
