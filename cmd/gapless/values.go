package main

import (
	"errors"
	"fmt"
	"reflect"
	"strconv"
	"time"

	"github.com/alecthomas/kong"
)

// valueMappers read the values of flags and arguments in kong's place: its own errors name the type that was expected, and
// not what to write.
func valueMappers() kong.Option {
	return kong.OptionFunc(func(k *kong.Kong) error {
		for _, o := range []kong.Option{
			kong.KindMapper(reflect.String, kong.MapperFunc(decodeText)),
			kong.KindMapper(reflect.Int, kong.MapperFunc(decodeInt)),
			kong.TypeMapper(reflect.TypeFor[time.Duration](), kong.MapperFunc(decodeDuration)),
		} {
			if err := o.Apply(k); err != nil {
				return err
			}
		}
		return nil
	})
}

// popValue takes a value from the command line. What begins with a dash is one only behind an equals sign.
func popValue(ctx *kong.DecodeContext) (string, error) {
	t := ctx.Scan.Peek()
	switch {
	case t.IsEOL() && ctx.Value.Flag == nil:
		return "", errors.New("it is missing")
	case t.IsEOL():
		return "", fmt.Errorf("it has no value; write --%s=%s", ctx.Value.Name, ctx.Value.Flag.FormatPlaceHolder())
	case !t.IsValue() && ctx.Value.Flag == nil:
		return "", fmt.Errorf("%q begins with a dash; write -- before it if it is meant so", t.String())
	case !t.IsValue():
		return "", fmt.Errorf("it has no value: what follows is %q; if that is the value, write --%s=%s", t.String(), ctx.Value.Name, t.String())
	}
	return fmt.Sprint(ctx.Scan.Pop().Value), nil
}

func decodeText(ctx *kong.DecodeContext, target reflect.Value) error {
	text, err := popValue(ctx)
	if err == nil {
		target.SetString(text)
	}
	return err
}

func decodeInt(ctx *kong.DecodeContext, target reflect.Value) error {
	text, err := popValue(ctx)
	if err != nil {
		return err
	}
	n, err := strconv.ParseInt(text, 10, strconv.IntSize)
	if err != nil {
		return fmt.Errorf("%q is no whole number; write digits only", text)
	}
	target.SetInt(n)
	return nil
}

func decodeDuration(ctx *kong.DecodeContext, target reflect.Value) error {
	text, err := popValue(ctx)
	if err != nil {
		return err
	}
	d, err := time.ParseDuration(text)
	if err != nil {
		if _, numErr := strconv.ParseFloat(text, 64); numErr == nil {
			return fmt.Errorf("%q has no unit; write %ss for seconds", text, text)
		}
		return fmt.Errorf("%q is no duration; write one such as 500ms, 30s or 2m", text)
	}
	target.SetInt(int64(d))
	return nil
}
