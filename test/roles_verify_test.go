//go:build linux

package test

import (
	"context"
	"fmt"
	"net/http"
	"os"
	"strconv"
	"syscall"
	"time"

	"github.com/cloudflare/tableflip"
)

// closesIdle closes connections that have been idle for a moment, as servers with a short keep-alive timeout do.
func closesIdle() int {
	srv := &http.Server{Handler: answer(), IdleTimeout: 700 * time.Millisecond}
	done := make(chan struct{})
	l := inherited()
	go func() {
		defer close(done)
		wait(syscall.SIGTERM)
		_ = srv.Shutdown(context.Background())
	}()
	if err := srv.Serve(l); err != http.ErrServerClosed {
		return 1
	}
	<-done
	return 0
}

// tableflipServer is a program that upgrades itself, as tableflip's own example does.
func tableflipServer() int {
	err := func() error {
		upg, err := tableflip.New(tableflip.Options{UpgradeTimeout: 20 * time.Second})
		if err != nil {
			return err
		}
		defer upg.Stop()
		l, err := upg.Listen("tcp", os.Getenv("E2E_ADDR"))
		if err != nil {
			return err
		}
		go func() {
			for {
				wait(syscall.SIGHUP)
				if err := upg.Upgrade(); err != nil {
					fmt.Fprintln(os.Stderr, "upgrade:", err)
				}
			}
		}()
		srv := &http.Server{Handler: answer()}
		go srv.Serve(l)
		if err := upg.Ready(); err != nil {
			return err
		}
		file := os.Getenv("E2E_PID")
		if err := os.WriteFile(file+".new", []byte(strconv.Itoa(os.Getpid())), 0o644); err != nil {
			return err
		}
		if err := os.Rename(file+".new", file); err != nil {
			return err
		}
		<-upg.Exit()
		return srv.Shutdown(context.Background())
	}()
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return 0
}
