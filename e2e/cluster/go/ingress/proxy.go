package main

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httputil"
	"net/url"
	"time"

	"golang.org/x/net/http2"
	"knative.dev/networking/pkg/apis/networking/v1alpha1"
)

const (
	dialTimeout = 2 * time.Second
	patience    = 30 * time.Second // for an endpoint that takes a connection
	silence     = 20 * time.Second // after which a peer that answers no ping counts as gone; a busy machine may pause it for seconds
	pause       = 20 * time.Millisecond
)

type splitKey struct{}

// proxy forwards requests to the backends that a table names. Bodies, trailers and upgrades stream through.
type proxy struct {
	table    *table
	backends *backends
	http1    http.RoundTripper
	http2    http.RoundTripper
	reverse  *httputil.ReverseProxy
}

func newProxy(t *table, b *backends) *proxy {
	dialer := &net.Dialer{Timeout: dialTimeout}
	p := &proxy{
		table:    t,
		backends: b,
		// no kept connections: a pod that goes between two requests must not cost one
		http1: &http.Transport{DialContext: dialer.DialContext, DisableKeepAlives: true, DisableCompression: true},
		http2: &http2.Transport{
			AllowHTTP:          true,
			DisableCompression: true,
			ReadIdleTimeout:    5 * time.Second,
			PingTimeout:        silence,
			DialTLSContext: func(ctx context.Context, network, address string, _ *tls.Config) (net.Conn, error) {
				return dialer.DialContext(ctx, network, address)
			},
		},
	}
	p.reverse = &httputil.ReverseProxy{Rewrite: rewrite, Transport: p, FlushInterval: -1, ErrorHandler: failed}
	return p
}

func (p *proxy) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	path := p.table.find(r)
	if path == nil {
		http.Error(w, "no route for "+r.Host+r.URL.Path, http.StatusNotFound)
		return
	}
	split := drawAny(path.Splits)
	if split == nil {
		http.Error(w, "no backend for "+r.Host+r.URL.Path, http.StatusServiceUnavailable)
		return
	}
	p.reverse.ServeHTTP(w, r.WithContext(context.WithValue(r.Context(), splitKey{}, choice{path, split})))
}

type choice struct {
	path  *v1alpha1.HTTPIngressPath
	split *v1alpha1.IngressBackendSplit
}

// rewrite sets what the Ingress says, over what the client sent: a client cannot name another revision.
func rewrite(r *httputil.ProxyRequest) {
	chosen := r.In.Context().Value(splitKey{}).(choice)
	r.SetURL(&url.URL{Scheme: "http", Host: "backend"}) // RoundTrip names the endpoint
	r.Out.Host = r.In.Host
	if chosen.path.RewriteHost != "" {
		r.Out.Host = chosen.path.RewriteHost
	}
	r.Out.Header["X-Forwarded-For"] = r.In.Header["X-Forwarded-For"]
	r.SetXForwarded()
	for _, headers := range []map[string]string{chosen.path.AppendHeaders, chosen.split.AppendHeaders} {
		for name, value := range headers {
			r.Out.Header.Set(name, value)
		}
	}
}

// RoundTrip sends a request to an endpoint of the chosen Service. Only a connection that was refused leads to another: nothing was sent then.
func (p *proxy) RoundTrip(r *http.Request) (*http.Response, error) {
	split := r.Context().Value(splitKey{}).(choice).split
	deadline := time.Now().Add(patience)
	for {
		addresses, h2c, err := p.backends.endpoints(split.ServiceNamespace, split.ServiceName, split.ServicePort)
		transport := p.http1
		if h2c && r.Header.Get("Upgrade") == "" {
			transport = p.http2
		}
		for _, address := range addresses {
			var response *http.Response
			if response, err = transport.RoundTrip(to(address, r)); err == nil || !refused(err) {
				return response, err
			}
		}
		if err == nil {
			err = fmt.Errorf("service %s/%s has no ready endpoint", split.ServiceNamespace, split.ServiceName)
		}
		if time.Now().After(deadline) {
			return nil, err
		}
		select {
		case <-r.Context().Done():
			return nil, r.Context().Err()
		case <-time.After(pause):
		}
	}
}

// to is one attempt: a transport closes the body when its dial fails, and the next attempt still needs it.
func to(address string, r *http.Request) *http.Request {
	attempt := r.WithContext(r.Context())
	target := *r.URL
	target.Host = address
	attempt.URL = &target
	if r.Body != nil {
		attempt.Body = io.NopCloser(r.Body)
	}
	return attempt
}

func refused(err error) bool {
	var failure *net.OpError
	return errors.As(err, &failure) && failure.Op == "dial"
}

func failed(w http.ResponseWriter, r *http.Request, err error) {
	if r.Context().Err() == nil {
		log.Printf("%s %s%s: %v", r.Method, r.Host, r.URL.Path, err)
	}
	http.Error(w, err.Error(), http.StatusBadGateway)
}
