# `make` alone prints this help.
GO      ?= go
TESTFLAGS ?=
VERSION ?= $(shell git describe --tags --always --dirty 2>/dev/null || echo dev)
LDFLAGS  = -s -w -X main.version=$(VERSION)
GOLANGCI = github.com/golangci/golangci-lint/v2/cmd/golangci-lint@v2.15.0
SYSTEMD_ROOT ?= /var/lib/gapless-test/trixie
VULN     = golang.org/x/vuln/cmd/govulncheck@v1.9.0

.DEFAULT_GOAL := help
.PHONY: help build run test soak bench bench-peers check lint vet tidy fuzz test-deps test-systemd bench-deps clean

help: ## Print this help
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

build: bin/gapless ## Build bin/gapless

bin/gapless: $(shell find . -name '*.go' -o -name '*.html' -o -name '*.cjs' -o -name go.mod | grep -v _test.go)
	@mkdir -p bin
	CGO_ENABLED=0 $(GO) build -trimpath -ldflags '$(LDFLAGS)' -o $@.new ./cmd/gapless
	@mv $@.new $@ # renamed into place, so that a running gapless keeps its own file

run: build ## Build, and run the built-in app with four workers on port 8000
	exec bin/gapless run -w 4 --port 8000

test: ## Run all tests in their reduced counts
	$(GO) test -race -shuffle=on -parallel 4 -timeout 60m $(TESTFLAGS) ./... # mostly they wait, so more at a time than cores

soak: ## Run all tests in their full counts (takes long)
	GO=$(GO) .ci/soak -parallel 4 -timeout 120m $(TESTFLAGS) ./test/... ./upgrade/... .

bench: build ## Print the figures of the README (nothing else should run meanwhile)
	$(GO) test -run '^$$' -bench . -benchtime 1x -timeout 30m ./test/bench

bench-peers: ## Measure deploys of nginx, HAProxy, gunicorn, uvicorn and gapless alike, for docs/peers.md (about 4 minutes)
	PEERS_OUT=$(CURDIR)/docs/peers.md $(GO) test -run '^$$' -bench Peers -benchtime 1x -timeout 30m ./test/peers

check: tidy vet lint test ## What CI runs: tidy, vet, lint and tests

vet: ## Vet for Linux, build for macOS, and build the examples that have modules of their own
	$(GO) vet ./...
	cd examples/modules && $(GO) vet ./...
	GOOS=darwin $(GO) vet ./...

lint: ## Lint, and hold the lines between the packages
	$(GO) run $(GOLANGCI) run ./...

tidy: ## Fail if go.mod or go.sum are not tidy
	$(GO) mod tidy -diff

fuzz: ## Fuzz each parser for 20 s
	@for p in $$($(GO) list ./...); do for f in $$($(GO) test -list '^Fuzz' $$p | grep '^Fuzz'); do \
		echo "== $$p $$f"; $(GO) test -run '^$$' -fuzz "^$$f$$" -fuzztime 20s $$p || exit 1; done; done

test-deps: ## Install the servers that the tests run as workers (Debian, as root)
	apt-get update -qq
	DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends \
		uvicorn python3-fastapi python3-uvloop python3-httptools python3-wsproto python3-websockets gunicorn puma util-linux procps nghttp2-client chromium systemd dbus libpam-systemd haproxy iproute2 \
		python3-hypercorn php-fpm
	@command -v node >/dev/null || DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends nodejs

test-systemd: $(SYSTEMD_ROOT)/lib/systemd/systemd ## Run the tests of systemd with that of Debian 13, too (Debian, as root; a minute to fetch it)
	GAPLESS_SYSTEMD_ROOT=$(SYSTEMD_ROOT) $(GO) test -race -timeout 60m -v $(TESTFLAGS) ./test/systemd

$(SYSTEMD_ROOT)/lib/systemd/systemd:
	@command -v debootstrap >/dev/null || DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends debootstrap
	@mkdir -p $(dir $(SYSTEMD_ROOT))
	rm -rf $(SYSTEMD_ROOT).new
	debootstrap --variant=minbase --include=systemd,systemd-sysv,dbus,libpam-systemd,procps trixie $(SYSTEMD_ROOT).new http://deb.debian.org/debian
	mv $(SYSTEMD_ROOT).new $(SYSTEMD_ROOT)

bench-deps: ## Install what `make bench` and `make bench-peers` measure with and against (Debian, as root)
	apt-get update -qq
	DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends wrk nginx-light haproxy

clean: ## Remove what was built
	rm -rf bin
