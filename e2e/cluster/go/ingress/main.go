// ingress is a Knative ingress for tests on machines that cannot have a published one: it watches KIngress objects of its class, routes
// HTTP/1.1 and h2c on one port by host, path and headers, and reports each as ready once it is routed.
//
// One replica, plain text, no probing: the table that a status speaks of is the table in this process.
package main

import (
	"context"
	"flag"
	"log"
	"net/http"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"time"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/h2c"
	"k8s.io/apimachinery/pkg/api/equality"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/cache"
	"knative.dev/networking/pkg/apis/networking"
	"knative.dev/networking/pkg/apis/networking/v1alpha1"
	knative "knative.dev/networking/pkg/client/clientset/versioned"
	"knative.dev/networking/pkg/client/informers/externalversions"
)

const (
	resync    = time.Minute
	streams   = 10_000 // a test's load comes over one connection
	drainTime = 10 * time.Second
)

// router keeps the tables of both visibilities and the status of the Ingresses.
type router struct {
	class           string
	public, private *table
	publicName      string // in-cluster name of the public port, for the status
	privateName     string
	client          knative.Interface
}

func (r *router) changed(object any) {
	ingress, ok := object.(*v1alpha1.Ingress)
	if !ok || ingress.Annotations[networking.IngressClassAnnotationKey] != r.class {
		return
	}
	public, private := map[string][]v1alpha1.HTTPIngressPath{}, map[string][]v1alpha1.HTTPIngressPath{}
	for _, rule := range ingress.Spec.Rules {
		if rule.HTTP == nil {
			continue
		}
		for _, host := range rule.Hosts {
			private[strings.ToLower(host)] = rule.HTTP.Paths
			if rule.Visibility != v1alpha1.IngressVisibilityClusterLocal {
				public[strings.ToLower(host)] = rule.HTTP.Paths
			}
		}
	}
	key := ingress.Namespace + "/" + ingress.Name
	r.public.set(key, public)
	r.private.set(key, private)
	r.report(ingress)
}

func (r *router) deleted(object any) {
	if gone, ok := object.(cache.DeletedFinalStateUnknown); ok {
		object = gone.Obj
	}
	if ingress, ok := object.(*v1alpha1.Ingress); ok {
		key := ingress.Namespace + "/" + ingress.Name
		r.public.set(key, nil)
		r.private.set(key, nil)
	}
}

// report says that the Ingress is routed. A write that fails is made good by the next event or resync.
func (r *router) report(ingress *v1alpha1.Ingress) {
	at := func(name string) []v1alpha1.LoadBalancerIngressStatus {
		return []v1alpha1.LoadBalancerIngressStatus{{DomainInternal: name}}
	}
	wanted := ingress.DeepCopy()
	wanted.Status.InitializeConditions()
	wanted.Status.MarkNetworkConfigured()
	wanted.Status.MarkLoadBalancerReady(at(r.publicName), at(r.privateName))
	wanted.Status.ObservedGeneration = wanted.Generation
	if equality.Semantic.DeepEqual(ingress.Status, wanted.Status) {
		return
	}
	_, err := r.client.NetworkingV1alpha1().Ingresses(ingress.Namespace).UpdateStatus(context.Background(), wanted, metav1.UpdateOptions{})
	if err != nil {
		log.Printf("status of %s/%s: %v", ingress.Namespace, ingress.Name, err)
	}
}

func serve(address string, handler http.Handler) *http.Server {
	server := &http.Server{Addr: address, Handler: h2c.NewHandler(handler, &http2.Server{MaxConcurrentStreams: streams})}
	go func() {
		if err := server.ListenAndServe(); err != http.ErrServerClosed {
			log.Fatal(err)
		}
	}()
	return server
}

func main() {
	r := &router{public: newTable(), private: newTable()}
	flag.StringVar(&r.class, "class", "test.ingress.networking.knative.dev", "ingress class to serve")
	flag.StringVar(&r.publicName, "public-name", "ingress.knative-ingress.svc.cluster.local", "Service of the public port")
	flag.StringVar(&r.privateName, "private-name", "ingress-internal.knative-ingress.svc.cluster.local", "Service of the cluster-local port")
	flag.Parse()
	config, err := rest.InClusterConfig()
	if err != nil {
		log.Fatal(err)
	}
	config.QPS, config.Burst = 50, 100
	r.client = knative.NewForConfigOrDie(config)

	core := informers.NewSharedInformerFactory(kubernetes.NewForConfigOrDie(config), resync)
	known := newBackends(core)
	core.Start(nil)
	core.WaitForCacheSync(nil)
	ingresses := externalversions.NewSharedInformerFactory(r.client, resync)
	handlers := cache.ResourceEventHandlerFuncs{AddFunc: r.changed, UpdateFunc: func(_, now any) { r.changed(now) }, DeleteFunc: r.deleted}
	registered, err := ingresses.Networking().V1alpha1().Ingresses().Informer().AddEventHandler(handlers)
	if err != nil {
		log.Fatal(err)
	}
	ingresses.Start(nil)
	cache.WaitForCacheSync(nil, registered.HasSynced)

	servers := []*http.Server{serve(":8080", newProxy(r.public, known)), serve(":8081", newProxy(r.private, known))}
	log.Print("serving on 8080, cluster-local on 8081")
	stop := make(chan os.Signal, 1)
	signal.Notify(stop, syscall.SIGTERM)
	<-stop
	ctx, cancel := context.WithTimeout(context.Background(), drainTime)
	defer cancel()
	for _, server := range servers {
		_ = server.Shutdown(ctx)
	}
}
