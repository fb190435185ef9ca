#!/bin/sh
# The tests that a release runs: units and templates, without what is slow. `make test` runs all.
#
# Two processes side by side, about as long as each other, rather than workers that share the tests:
# each of those would import what the tests of both need.
fast() {
  python -m pytest "$@" -m "not slow" --hypothesis-profile=fast -p no:xdist -p no:cacheprovider
}

beside_templates=$(ls tests/unit/test_tu*.py 2>/dev/null)

fast tests/infrastructure $beside_templates &
first=$!
fast tests/unit $(for file in $beside_templates; do echo "--ignore=$file"; done)
second=$?
wait $first && exit $second
