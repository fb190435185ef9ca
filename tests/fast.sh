#!/bin/sh
# The tests that a release runs: units and templates, without what is slow. `make test` runs all.
#
# Two processes side by side, rather than workers that share the tests: each of those would import
# what the tests of both need.
fast() {
  python -m pytest "tests/$1" -m "not slow" --hypothesis-profile=fast -p no:xdist -p no:cacheprovider
}

fast infrastructure &
infrastructure=$!
fast unit
unit=$?
wait $infrastructure && exit $unit
