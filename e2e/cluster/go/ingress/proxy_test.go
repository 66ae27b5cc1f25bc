package main

import (
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/h2c"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes/fake"
	"knative.dev/networking/pkg/apis/networking/v1alpha1"
)

// front serves host h through an ingress whose Service has a port of this name and these endpoints.
func front(t *testing.T, portName string, endpoints ...string) *httptest.Server {
	t.Helper()
	service := &corev1.Service{
		ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: "s"},
		Spec:       corev1.ServiceSpec{Ports: []corev1.ServicePort{{Name: portName, Port: 80}}},
	}
	factory := informers.NewSharedInformerFactory(fake.NewSimpleClientset(), 0)
	known := newBackends(factory)
	if err := factory.Core().V1().Services().Informer().GetIndexer().Add(service); err != nil {
		t.Fatal(err)
	}
	for i, endpoint := range endpoints {
		slice := sliceOf(endpoint, portName)
		slice.Name += strconv.Itoa(i)
		if err := factory.Discovery().V1().EndpointSlices().Informer().GetIndexer().Add(slice); err != nil {
			t.Fatal(err)
		}
	}
	routes := newTable()
	routes.set("ns/i", map[string][]v1alpha1.HTTPIngressPath{"h": {{Splits: []v1alpha1.IngressBackendSplit{{
		IngressBackend: v1alpha1.IngressBackend{ServiceNamespace: "ns", ServiceName: "s", ServicePort: intstr.FromInt32(80)},
		Percent:        100,
		AppendHeaders:  map[string]string{"Knative-Serving-Revision": "mine"},
	}}}}})
	server := httptest.NewServer(h2c.NewHandler(newProxy(routes, known), &http2.Server{}))
	t.Cleanup(server.Close)
	return server
}

func sliceOf(endpoint, portName string) *discoveryv1.EndpointSlice {
	host, text, _ := net.SplitHostPort(endpoint)
	number, _ := strconv.Atoi(text)
	port := int32(number)
	return &discoveryv1.EndpointSlice{
		ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: "s-", Labels: map[string]string{discoveryv1.LabelServiceName: "s"}},
		Endpoints:  []discoveryv1.Endpoint{{Addresses: []string{host}}},
		Ports:      []discoveryv1.EndpointPort{{Name: &portName, Port: &port}},
	}
}

// backend tells what it was asked, and sends a trailer.
func backend(t *testing.T) string {
	t.Helper()
	handler := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		w.Header().Set("Trailer", "Told")
		_, _ = io.WriteString(w, strings.Join([]string{r.Proto, r.Host, r.Header.Get("Knative-Serving-Revision"), string(body)}, " "))
		w.(http.Flusher).Flush() // without a length: HTTP/1.1 has no trailers after one
		w.Header().Set("Told", "after")
	})
	server := httptest.NewServer(h2c.NewHandler(handler, &http2.Server{}))
	t.Cleanup(server.Close)
	return server.Listener.Addr().String()
}

func closedPort(t *testing.T) string {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	return listener.Addr().String()
}

func ask(t *testing.T, server *httptest.Server, body string) (string, http.Header) {
	t.Helper()
	target, _ := url.Parse(server.URL)
	request := &http.Request{
		Method: http.MethodPost, URL: target, Host: "h", Body: io.NopCloser(strings.NewReader(body)), ContentLength: int64(len(body)),
		Header: http.Header{"Knative-Serving-Revision": {"forged"}},
	}
	answer, err := http.DefaultClient.Do(request)
	if err != nil {
		t.Fatal(err)
	}
	defer answer.Body.Close()
	got, err := io.ReadAll(answer.Body)
	if err != nil {
		t.Fatal(err)
	}
	return string(got), answer.Trailer
}

func TestThePortsNameChoosesTheProtocol(t *testing.T) {
	for name, protocol := range map[string]string{"http": "HTTP/1.1", "http2": "HTTP/2.0", "h2c": "HTTP/2.0"} {
		got, trailer := ask(t, front(t, name, backend(t)), "body")
		if want := protocol + " h mine body"; got != want {
			t.Errorf("port %s: %q, not %q", name, got, want)
		}
		if trailer.Get("Told") != "after" {
			t.Errorf("port %s: the trailer is lost: %v", name, trailer)
		}
	}
}

func TestARefusedDialLeadsToAnotherEndpointWithTheBodyWhole(t *testing.T) {
	for _, name := range []string{"http", "http2"} {
		server := front(t, name, closedPort(t), closedPort(t), closedPort(t), backend(t))
		for i := 0; i < 10; i++ {
			if got, _ := ask(t, server, "body"); !strings.HasSuffix(got, " mine body") {
				t.Fatalf("port %s: %q", name, got)
			}
		}
	}
}

func TestAnEndpointThatIsNotReadyGetsNothing(t *testing.T) {
	no := false
	slice := sliceOf("10.0.0.1:80", "http")
	slice.Endpoints[0].Conditions.Ready = &no
	if found := ready(slice, "http"); len(found) != 0 {
		t.Errorf("found %v", found)
	}
}
