#!/bin/sh
# The tests that a release runs: units and templates, without what is slow. `make test` runs all.
#
# Two processes side by side, about as long as each other, rather than workers that share the tests:
# each of those would import what the tests of both need.
fast() {
  python -m pytest "$@" -m "not slow" --hypothesis-profile=fast -p no:xdist -p no:cacheprovider
}

fast tests/infrastructure tests/unit --ignore-glob="*/unit/test_[!p-r]*" &
first=$!
fast tests/unit --ignore-glob="*/unit/test_[p-r]*"
second=$?
wait $first && exit $second
