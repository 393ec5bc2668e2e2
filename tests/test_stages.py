def test_it(tiny, fastdraft):
    import time

    t = time.time()
    e = fastdraft("--version")
    print(e, time.time() - t)
    t = time.time()
    e = fastdraft("run", "recipe.yaml")
    print(e.err, e.out, e.code, time.time() - t)
    t = time.time()
    e = fastdraft("run", "recipe.yaml", "--json")
    print(e.err, e.out[:300], e.code, time.time() - t)
    assert 0
