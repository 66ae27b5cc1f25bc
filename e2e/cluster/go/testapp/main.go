// testapp is the stateless service that the cluster tests deploy: HTTP/1.1, a websocket echo and gRPC over h2c on one port.
//
//	GET /?sleep=1.5s        "Hello TARGET from HOST", after that time
//	websocket, any path     every message back
//	testapp.Echo/Say        StringValue → StringValue
//	testapp.Echo/Count      Int32Value n → stream of n StringValue, one each 10 ms
package main

import (
	"context"
	"fmt"
	"log"
	"net/http"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"time"

	"github.com/gorilla/websocket"
	"golang.org/x/net/http2"
	"golang.org/x/net/http2/h2c"
	"google.golang.org/grpc"
	"google.golang.org/protobuf/types/known/wrapperspb"
)

var (
	target   = os.Getenv("TARGET")
	host, _  = os.Hostname()
	upgrader = websocket.Upgrader{CheckOrigin: func(*http.Request) bool { return true }}
)

func hello(w http.ResponseWriter, r *http.Request) {
	if pause, err := time.ParseDuration(r.URL.Query().Get("sleep")); err == nil {
		time.Sleep(pause)
	}
	fmt.Fprintf(w, "Hello %s from %s\n", target, host)
}

func echo(w http.ResponseWriter, r *http.Request) {
	connection, err := upgrader.Upgrade(w, r, nil)
	if err != nil {
		return // the upgrader has answered
	}
	defer connection.Close()
	for {
		kind, message, err := connection.ReadMessage()
		if err != nil {
			return
		}
		if err := connection.WriteMessage(kind, message); err != nil {
			return
		}
	}
}

func say(_ any, ctx context.Context, decode func(any) error, _ grpc.UnaryServerInterceptor) (any, error) {
	asked := new(wrapperspb.StringValue)
	if err := decode(asked); err != nil {
		return nil, err
	}
	return wrapperspb.String(fmt.Sprintf("Hello %s from %s", asked.Value, host)), nil
}

func count(_ any, stream grpc.ServerStream) error {
	asked := new(wrapperspb.Int32Value)
	if err := stream.RecvMsg(asked); err != nil {
		return err
	}
	for i := int32(0); i < asked.Value; i++ {
		if err := stream.SendMsg(wrapperspb.String(fmt.Sprintf("%d from %s", i, host))); err != nil {
			return err
		}
		time.Sleep(10 * time.Millisecond)
	}
	return nil
}

// The service is described by hand over well-known types: nothing has to be generated for it.
var service = grpc.ServiceDesc{
	ServiceName: "testapp.Echo",
	HandlerType: (*any)(nil),
	Methods:     []grpc.MethodDesc{{MethodName: "Say", Handler: say}},
	Streams:     []grpc.StreamDesc{{StreamName: "Count", Handler: count, ServerStreams: true}},
}

func main() {
	calls := grpc.NewServer()
	calls.RegisterService(&service, struct{}{})
	handler := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch {
		case strings.HasPrefix(r.Header.Get("Content-Type"), "application/grpc"):
			calls.ServeHTTP(w, r)
		case websocket.IsWebSocketUpgrade(r):
			echo(w, r)
		default:
			hello(w, r)
		}
	})
	port := os.Getenv("PORT")
	if port == "" {
		port = "8080"
	}
	server := &http.Server{Addr: ":" + port, Handler: h2c.NewHandler(handler, &http2.Server{})}
	go func() {
		stop := make(chan os.Signal, 1)
		signal.Notify(stop, syscall.SIGTERM)
		<-stop
		_ = server.Shutdown(context.Background())
	}()
	log.Print("listening on ", server.Addr)
	if err := server.ListenAndServe(); err != http.ErrServerClosed {
		log.Fatal(err)
	}
}
